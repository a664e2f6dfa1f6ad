"""Where weights come from that a run starts with or learns from: one file for each form of source.

source = find_source("outputs/lm_ternary/0123456789")      a run's folder
source = find_source("packed.safetensors")                 a packed file
source = find_source("some/folder")                        a model in the layout of transformers
source = find_source("torchvision:resnet18:IMAGENET1K_V1") weights of torchvision; or its state dict in a file

Nothing in a source is executed, and shapes are compared before any value is used.
"""

from __future__ import annotations

from bitexp.common.registry import load_modules
from bitexp.deploy.sources.base import SOURCES, Source, Which, find_source

load_modules(__name__, __path__)

__all__ = ["SOURCES", "Source", "Which", "find_source"]
