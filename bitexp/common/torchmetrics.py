"""torchmetrics without what it does not need here.

Importing any of it imports every metric that there is, and with them scipy, matplotlib, transformers and
torchvision: more than torch and Lightning take together. Here the bodies of its packages (`__init__.py`) are
put off until something asks them for a name that is not known to be light. Whoever does so, Lightning or a
package of a user's, gets the whole package as it is: nothing is taken away or replaced.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from importlib import import_module
from threading import RLock
from types import ModuleType
from typing import Any

from bitexp.common.torchvision import import_torchvision

LIGHT = {
    "torchmetrics": {
        "Metric": "metric",
        "MetricCollection": "collections",
        "__version__": "__about__",
    },
    "torchmetrics.functional": {},
    "torchmetrics.functional.classification": {},
    "torchmetrics.classification": {},
}
"""The packages that are put off, with the module of each name that needs no other."""
NEEDED = (
    "utilities",
    "collections",
    "aggregation",
    "classification.accuracy",
    "classification.confusion_matrix",
)
"""What Lightning and our tasks need; `utilities` before `metric`, since each imports the other."""
PLOT = "torchmetrics.utilities.plot"
_lock = RLock()


class PutOff(ModuleType):
    """A package that runs its body when it is asked for a name that is not light."""

    def __getattr__(self, name: str) -> Any:
        if name in LIGHT[self.__name__]:
            return getattr(import_module(f"{self.__name__}.{LIGHT[self.__name__][name]}"), name)
        if name == "_logger":  # every module of torchmetrics takes it from its package
            return logging.getLogger(self.__name__)
        if name.startswith("__") and name != "__all__":
            raise AttributeError(f"module '{self.__name__}' has no attribute '{name}'")
        with _lock:
            if type(self) is PutOff:
                self.__class__ = ModuleType  # type: ignore[assignment]  # its modules import from it meanwhile
                if "classification" not in self.__name__ and importlib.util.find_spec("torchvision"):
                    import_torchvision()
                assert self.__spec__ is not None
                assert self.__spec__.loader is not None
                self.__spec__.loader.exec_module(self)
        return getattr(self, name)


class Plot(ModuleType):
    """What metrics import for their plots, while matplotlib is not imported: it is at the first plot."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module '{self.__name__}' has no attribute '{name}'")
        if name.isupper():  # a type in annotations
            return object

        def call(*arguments: Any, **options: Any) -> Any:
            return getattr(import_module(PLOT), name)(*arguments, **options)

        return call


def put_off() -> None:
    """Puts the packages off, unless torchmetrics is there already."""
    if "torchmetrics" in sys.modules:
        return
    for name in LIGHT:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        package = importlib.util.module_from_spec(spec)
        package.__class__ = PutOff
        sys.modules[name] = package
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], own, package)
    sys.modules[PLOT] = Plot(PLOT)
    try:
        for name in NEEDED:
            import_module(f"torchmetrics.{name}")
    finally:
        del sys.modules[PLOT]  # from here on it is the real one


put_off()

from torchmetrics.aggregation import MeanMetric  # noqa: E402
from torchmetrics.classification.accuracy import MulticlassAccuracy  # noqa: E402
from torchmetrics.classification.confusion_matrix import MulticlassConfusionMatrix  # noqa: E402

__all__ = ["MeanMetric", "MulticlassAccuracy", "MulticlassConfusionMatrix"]
