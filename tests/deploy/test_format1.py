"""Files of packed format 1 and a run's folder, made before format 2: they are read for ever.

tests/files/format1 was written by the code of 2026-11-25 (commit 29f8a4b) on torch 2.13: two packed files
with inputs and the outputs of that day, a finished run, and the metrics of a small run at each precision.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bitexp.deploy.packed_file import load_packed
from bitexp.kernels import KERNELS
from bitexp.report.runs import Run, read_run
from bitexp.run.road import Outcome

FILES = Path(__file__).parents[1] / "files" / "format1"
METRICS = json.loads((FILES / "reference_metrics.json").read_text())


@pytest.mark.parametrize("name", ["linear_groups", "convolution"])
def test_a_packed_file_of_format_1_gives_the_outputs_that_it_gave(name: str) -> None:
    model, _ = load_packed(FILES / f"{name}.safetensors", KERNELS.get("reference"))
    given = load_file(FILES / f"{name}.answers.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(model(given["inputs"]), given["outputs"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("quantizer", METRICS)
def test_a_small_run_has_the_metrics_that_it_had(quantizer: str, train: Callable[..., Outcome]) -> None:
    metrics = train("kernel=reference", f"quantizer={quantizer}").result["metrics"]
    before = METRICS[quantizer]
    # other processors round the head's sums otherwise; memory and bytes are exact everywhere
    for name in ("test/loss", "test_packed/loss", "val/loss"):
        assert metrics[name] == pytest.approx(before[name], rel=1e-4)
    for name in ("size/body_bytes", "size/total_bytes", "size/body_weights", "cost/int8_add"):
        assert metrics[name] == before[name]


def test_an_old_run_is_reported_in_today_s_words() -> None:
    run = read_run(FILES / "run")
    assert isinstance(run, Run)
    assert (run.precision, run.finished) == ("reloaded", True)
    assert run.flat["quantizer.activations.qmax"] == 128
    assert run.flat["quantizer.weights.granularity"] == "tensor"
    assert "quantizer.act_qmax" not in run.flat
