"""A trained model from a run's folder: from the packed file, or from a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from bitexp.common.errors import UserError, is_of_the_machine
from bitexp.common.files import read_json
from bitexp.deploy.description import Description
from bitexp.deploy.packed_file import load_packed
from bitexp.kernels import Kernel, as_kernel
from bitexp.quant.layers import set_backend
from bitexp.track.folder import RunFolder


def load_run(
    path: Path | str, weights: str = "packed", kernel: Kernel | str = "auto"
) -> tuple[nn.Module, dict[str, Any]]:
    """The model of a run, in eval mode on the CPU, and how to prepare its inputs.

    Args:
        path: the run's folder, or a packed file.
        weights: `packed`, or the checkpoint `last` or `best`.
        kernel: what multiplies, or its name.

    Raises:
        UserError: there is no such run, or its files are missing or damaged.
        OSError, MemoryError: they cannot be read, or not held.
    """
    path, kernel = Path(path), as_kernel(kernel)
    if path.suffix == ".safetensors":
        if weights != "packed":
            raise UserError(f"{path} is a packed file: it has no checkpoint '{weights}'")
        return load_packed(path, kernel)
    folder = RunFolder(path)
    if weights == "packed":
        if not folder.packed.exists():
            what = "the run has not finished"
            if (folder.result() or {}).get("status") == "finished":
                what = "it was lost since the run finished, and the command of the run makes it again"
            raise UserError(
                f"there is no packed file {folder.packed}: {what}; --weights last takes its last checkpoint"
            )
        return load_packed(folder.packed, kernel)
    return load_from_checkpoint(folder, folder.checkpoints / f"{weights}.ckpt", kernel)


def load_from_checkpoint(
    folder: RunFolder, checkpoint: Path, kernel: Kernel
) -> tuple[nn.Module, dict[str, Any]]:
    """The model with the latent weights of a checkpoint, quantized anew in every forward."""
    from bitexp.track.checkpoint_files import damage, load_checkpoint

    if reason := damage(checkpoint):
        if not checkpoint.exists() and (folder.result() or {}).get("status") == "finished":
            reason += " (of finished runs those are kept that callbacks.checkpoint.keep said)"
        raise UserError(f"{checkpoint} cannot be used: {reason}")
    try:
        description = Description.of(read_json(folder.model) or {})
        model = description.build()
        state = load_checkpoint(checkpoint)["state_dict"]
        own = {name.removeprefix("model."): v for name, v in state.items() if name.startswith("model.")}
        model.load_state_dict(own)
    except Exception as error:  # whatever a damaged file can make the constructors of a model raise
        if is_of_the_machine(error):
            raise
        raise UserError(f"{folder.model} does not describe the model of {checkpoint}: {error}") from error
    set_backend(model, kernel.backend)
    return model.float().eval(), description.preprocessing


def find_run(path: Path | str) -> Path:
    """The path itself where it is a run or a packed file; in a folder of runs the one that finished last.

    Raises:
        UserError: there is no run.
    """
    path = Path(path)
    if (path.is_file() and path.suffix == ".safetensors") or (path / "config.yaml").exists():
        return path
    ends = {  # in seconds, and within one by the clock of the file
        folder: (str(result.get("ended", "")), (folder / "result.json").stat().st_mtime_ns)
        for folder, result in finished_runs(path)
    }
    if not ends:
        raise UserError(
            f"{path} is no run and holds no finished one: name a folder such as outputs/lm_ternary/ID, "
            "or a packed.safetensors"
        )
    return max(ends, key=ends.__getitem__)


def every_run(paths: Iterable[Path]) -> list[Path]:
    """The folders of runs among paths, and the finished runs in those that are folders of runs.

    Raises:
        UserError: a path is neither.
    """
    found: dict[Path, None] = {}
    for path in paths:
        within = [path] if (path / "config.yaml").exists() else sorted(run for run, _ in finished_runs(path))
        if not within:
            raise UserError(
                f"{path} is no run and holds no finished one: name a folder such as outputs/vit_ternary"
            )
        found |= dict.fromkeys(within)
    return list(found)


def finished_runs(path: Path) -> Iterable[tuple[Path, dict[str, Any]]]:
    """The finished runs in a folder, with their results."""
    for file in path.glob("*/result.json"):
        result = RunFolder(file.parent).result()
        if result is not None and result["status"] == "finished":
            yield file.parent, result
