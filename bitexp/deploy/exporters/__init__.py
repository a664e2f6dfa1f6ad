"""What leaves the house: a packed model in the form that another engine reads.

from bitexp.deploy.exporters import EXPORTERS, expressible
"""

from __future__ import annotations

from bitexp.common.registry import load_modules
from bitexp.deploy.exporters.exporter import EXPORTERS, Exporter, InexpressibleError, expressible

__all__ = ["EXPORTERS", "Exporter", "InexpressibleError", "expressible"]

load_modules(__name__, __path__)
