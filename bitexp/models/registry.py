"""The registry of models: the word after `name:` in conf/model/*.yaml is a name here."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from bitexp.common.registry import Registry

MODELS: Registry[Callable[..., nn.Module]] = Registry("model")
"""name -> a class or function that takes what it needs of the data (`shape` and `classes`, or `vocabulary`
and `context`) and the keys of its YAML as keywords"""
