"""torchmetrics is light until it is asked for more, and then it is the whole of it. In fresh interpreters."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LUGGAGE = ("scipy", "matplotlib", "torchvision", "transformers", "sklearn")


def shown(program: str) -> str:
    """What a program prints in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_lightning_brings_no_luggage() -> None:
    program = f"""
import sys
from bitexp.common.lightning import pl
print([name for name in {LUGGAGE} if name in sys.modules], pl.__name__)
"""
    assert shown(program) == "[] pytorch_lightning"


@pytest.mark.slow
def test_nothing_of_it_is_missing() -> None:
    program = """
import warnings
warnings.simplefilter("ignore")
from bitexp.common.lightning import pl
from bitexp.common.torchmetrics import MulticlassAccuracy
import torchmetrics, torchmetrics.utilities.plot
from torchmetrics.classification import MulticlassF1Score
assert set(torchmetrics.__all__) <= set(dir(torchmetrics))
assert torchmetrics.classification.MulticlassAccuracy is MulticlassAccuracy
assert torchmetrics.Metric is torchmetrics.metric.Metric is pl.core.module.Metric
assert torchmetrics.BLEUScore.__name__ and torchmetrics.functional.accuracy
print(torchmetrics.utilities.plot.plot_curve.__module__)
"""
    assert shown(program) == "torchmetrics.utilities.plot"


def test_a_metric_draws_its_plot() -> None:
    pytest.importorskip("matplotlib")
    program = """
import matplotlib, torch
matplotlib.use("Agg")
from bitexp.common.torchmetrics import MulticlassAccuracy
accuracy = MulticlassAccuracy(2)
accuracy.update(torch.eye(2), torch.tensor([0, 1]))
figure, axes = accuracy.plot()
print(type(figure).__name__)
"""
    assert shown(program) == "Figure"


@pytest.mark.slow
def test_what_a_user_has_imported_is_left_as_it_is() -> None:
    program = """
from bitexp.common.torchvision import import_torchvision
import_torchvision()
import torchmetrics
before = dict(vars(torchmetrics))
from bitexp.common.lightning import pl
print(before == vars(torchmetrics), type(torchmetrics).__name__)
"""
    assert shown(program) == "True module"
