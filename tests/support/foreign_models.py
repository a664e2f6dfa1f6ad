"""Small random models of other packages, saved by these packages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

SIZES: dict[str, Any] = {
    "vocab_size": 37,
    "hidden_size": 24,
    "intermediate_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 40,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def save_transformers(folder: Path, kind: str, seed: int = 0, **changes: Any) -> nn.Module:
    """Saves a random model of transformers, norms and biases included, and returns it in eval mode."""
    import transformers

    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **changes})
    model: nn.Module = getattr(transformers, f"{kind}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)  # type: ignore[operator]
    return model.eval()


def save_torchvision(path: Path, arch: str, seed: int = 0, **options: Any) -> nn.Module:
    """Saves the state dict of a random model of torchvision, whose statistics have moved, and returns it."""
    from bitexp.common.torchvision import import_torchvision

    torch.manual_seed(seed)
    model: nn.Module = import_torchvision("torchvision.models").get_model(arch, **options)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) * 0.1)
            elif name.endswith("num_batches_tracked"):
                tensor.add_(3)
    torch.save(model.state_dict(), path)
    return model.eval()
