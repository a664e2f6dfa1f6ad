"""Energy of an inference, estimated from its operations as the BitNet papers do."""

from __future__ import annotations

from collections.abc import Mapping

PICOJOULES: Mapping[str, Mapping[str, float]] = {
    "45 nm": {"fp32_add": 0.9, "fp32_mul": 3.7, "int8_add": 0.03, "int8_mul": 0.2},
    "7 nm": {"fp32_add": 0.38, "fp32_mul": 1.31, "int8_add": 0.007, "int8_mul": 0.07},
}
"""Energy per operation by process node: BitNet (arXiv 2310.11453), table 2."""

NODE = "45 nm"
"""The node that plots and short tables show."""

MEASURED = "energy/inference_joules"
"""The metric of what a machine has counted, where it counts."""

SOURCE = (
    "Energy is an estimate, not a measurement: counted additions and multiplications times the picojoules "
    "per operation of BitNet (arXiv 2310.11453, table 2; 45 nm and 7 nm), fp32 outside the quantized layers. "
    "It leaves out memory traffic and everything elementwise. Measured is what NVML or RAPL counted, less "
    "what the idle machine takes."
)


def energy(metrics: Mapping[str, float], node: str = NODE) -> float | None:
    """Joules for one image or token; None where a run has not counted its operations."""
    counts = {kind: metrics.get(f"cost/{kind}") for kind in PICOJOULES[node]}
    if any(count is None for count in counts.values()):
        return None
    return joules({kind: count for kind, count in counts.items() if count}, node)


def joules(counts: Mapping[str, float], node: str = NODE) -> float:
    """Energy of operations by their kinds; other counts are left out."""
    return 1e-12 * sum(counts.get(kind, 0.0) * price for kind, price in PICOJOULES[node].items())
