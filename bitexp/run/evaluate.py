"""After training, by one process in fp32: test, freeze to packed codes, test the packed file."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from safetensors.torch import save

from bitexp.common.errors import Damaged
from bitexp.common.files import write_atomic
from bitexp.deploy.cost import costs
from bitexp.deploy.embeddings import round_embeddings
from bitexp.deploy.frozen import freeze
from bitexp.deploy.packed_file import read_packed, save_packed, sizes, unpack
from bitexp.kernels.reference import Reference
from bitexp.quant.backend import TORCH
from bitexp.quant.layers import set_backend, set_lambda, set_progress
from bitexp.run.attempt import Attempt
from bitexp.run.checks import device_type
from bitexp.run.energy import inference_energy
from bitexp.run.fit import evaluated
from bitexp.run.parts import Parts
from bitexp.track.checkpoint_files import damage, load_checkpoint


def restore(parts: Parts, checkpoint: Path) -> None:
    """Puts a checkpoint's weights (under EMA the averaged ones) into the model, in fp32, quantized.

    Raises:
        Damaged: the checkpoint is damaged.
    """
    if reason := damage(checkpoint):
        raise Damaged(
            f"{checkpoint} is damaged: {reason}. Use rerun=true to start this run over; the "
            "old folder is kept"
        )
    parts.task.load_state_dict(load_checkpoint(checkpoint)["state_dict"])
    parts.task.float()
    set_lambda(parts.task, 1.0)
    set_progress(parts.task, 1.0)


def evaluate(attempt: Attempt) -> dict[str, float]:
    """Tests the restored model and its packed file.

    Returns:
        `test/*`, `test_packed/*` and `size/*`, and the energy of an inference where it can be measured. The
        packed file is read back from the disk; with the same batches its metrics equal `test/*` exactly.
    """
    parts, path = attempt.parts, attempt.folder.packed
    packing, body = attempt.settings.packing, parts.conversion.body
    if packing.embeddings == "int8":
        round_embeddings(parts.model, body)
    metrics = evaluated(attempt, parts.task, "test")
    for name, table in parts.task.test_tables().items():
        rows = "".join(",".join(map(str, row)) + "\n" for row in table)
        write_atomic(attempt.folder.path / f"{name}.csv", rows.encode())
    if predictions := parts.task.test_predictions():
        write_atomic(attempt.folder.predictions, save(predictions))

    frozen = copy.deepcopy(parts.model).cpu().eval()
    freeze(frozen, packing.layout, Reference())
    save_packed(path, frozen, attempt.description, body, packing.embeddings)

    file = read_packed(path)
    model, _ = unpack(path, file, parts.kernel)
    packed = evaluated(attempt, parts.task.with_model(model), "test")
    metrics |= {name.replace("test/", "test_packed/"): value for name, value in packed.items()}
    metrics |= inference_energy(parts, model, device_type(attempt.settings))
    metrics |= {f"size/{name}": float(value) for name, value in sizes(file).items()}
    return metrics


def measured_costs(parts: Parts) -> dict[str, float]:
    """Operations, weights and memory of the trained model, on one sample of the test set."""
    inputs, targets = (tensor[:1] for tensor in next(iter(parts.data.test_dataloader())))
    model = copy.deepcopy(parts.task.model).cpu().eval()
    set_backend(model, TORCH)  # the kernel's own may need a GPU
    amount = parts.task.amount((inputs, targets))
    with torch.compiler.set_stance("force_eager"):
        return costs(model, inputs, parts.conversion.body, amount, parts.data.batch_size)
