"""What a quantizer is, and the layers that use one. Knows torch and nothing above it.

from bitexp.quant import quantize
quantize(model, "ternary_median", exclude=["head"])
"""

from __future__ import annotations

from bitexp.common.registry import load_modules
from bitexp.quant.calibration import CALIBRATIONS, Calibration
from bitexp.quant.convert import Conversion, quantize
from bitexp.quant.layers import (
    BitConv2d,
    BitLinear,
    quantized_layers,
    set_backend,
    set_lambda,
    set_progress,
)
from bitexp.quant.levels import Levels
from bitexp.quant.parts import (
    ACTIVATIONS,
    ESTIMATORS,
    GRADIENTS,
    SPARSIFIERS,
    TRANSFORMS,
    WEIGHTS,
    ActivationQuantizer,
    Estimator,
    GradientQuantizer,
    Sparsifier,
    Transform,
    WeightQuantizer,
)
from bitexp.quant.presets import QUANTIZERS
from bitexp.quant.product import Quantized
from bitexp.quant.quantizer import Quantizer
from bitexp.quant.spec import ActivationSpec, LayerSpec, Part

load_modules(__name__, __path__)

__all__ = [
    "ACTIVATIONS", "CALIBRATIONS", "ESTIMATORS", "GRADIENTS", "QUANTIZERS", "SPARSIFIERS", "TRANSFORMS",
    "WEIGHTS", "ActivationQuantizer", "ActivationSpec", "BitConv2d", "BitLinear", "Calibration", "Conversion",
    "Estimator",
    "GradientQuantizer", "LayerSpec", "Levels", "Part", "Quantized", "Quantizer", "Sparsifier",
    "Transform", "WeightQuantizer", "quantize", "quantized_layers",
    "set_backend", "set_lambda", "set_progress",
]  # fmt: skip
