"""After training, by one process in fp32: test, freeze to packed codes, test the packed file."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bitexp.common.errors import UserError
from bitexp.common.files import write_atomic
from bitexp.common.lightning import pl
from bitexp.config.schema import Settings
from bitexp.deploy.cost import costs
from bitexp.deploy.description import Description
from bitexp.deploy.frozen import freeze
from bitexp.deploy.packed_file import load_packed, save_packed, sizes
from bitexp.kernels.reference import Reference
from bitexp.quant.backend import TORCH
from bitexp.quant.layers import set_backend, set_lambda, set_progress
from bitexp.run.attempt import Parts
from bitexp.tasks import Task
from bitexp.track.checkpoint_files import damage, load_checkpoint
from bitexp.track.folder import RunFolder
from bitexp.train.progress import measured


def restore(parts: Parts, checkpoint: Path) -> None:
    """Puts a checkpoint's weights (under EMA the averaged ones) into the model, in fp32, quantized.

    Raises:
        UserError: the checkpoint is damaged.
    """
    if reason := damage(checkpoint):
        raise UserError(
            f"{checkpoint} is damaged: {reason}. rerun=true starts this run anew and keeps the old "
            "folder aside"
        )
    parts.task.load_state_dict(load_checkpoint(checkpoint)["state_dict"])
    parts.task.float()
    set_lambda(parts.task, 1.0)
    set_progress(parts.task, 1.0)


def described(parts: Parts) -> Description:
    """How to build this model again, with what the data say about its inputs."""
    return replace(parts.description, preprocessing=parts.data.preprocessing())


def evaluate(settings: Settings, parts: Parts, folder: RunFolder) -> dict[str, float]:
    """Tests the restored model and its packed file.

    Returns:
        `test/*`, `test_packed/*` and `size/*`. The packed file is read back from the disk; with the
        same batches its metrics equal `test/*` exactly.
    """
    metrics = test(settings, parts.task, parts.data)
    for name, table in parts.task.test_tables().items():
        rows = "".join(",".join(map(str, row)) + "\n" for row in table)
        write_atomic(folder.path / f"{name}.csv", rows.encode())

    frozen = copy.deepcopy(parts.task.model).cpu().eval()
    freeze(frozen, settings.packing, Reference())
    save_packed(folder.packed, frozen, described(parts), parts.conversion.body)

    packed_task = copy.copy(parts.task)
    packed_task._modules = {
        **parts.task._modules,
        "model": load_packed(folder.packed, parts.kernel)[0],
    }
    packed = test(settings, packed_task, parts.data)
    metrics |= {name.replace("test/", "test_packed/"): value for name, value in packed.items()}
    metrics |= {f"size/{name}": float(value) for name, value in sizes(folder.packed).items()}
    return metrics


def measured_costs(parts: Parts) -> dict[str, float]:
    """Operations, weights and memory of the trained model, on one sample of the test set."""
    inputs, targets = (tensor[:1] for tensor in next(iter(parts.data.test_dataloader())))
    model = copy.deepcopy(parts.task.model).cpu().eval()
    set_backend(model, TORCH)  # the kernel's own may need a GPU
    amount = parts.task.amount((inputs, targets))
    with torch.compiler.set_stance("force_eager"):
        return costs(model, inputs, parts.conversion.body, amount, parts.data.batch_size)


def test(settings: Settings, task: Task, data: pl.LightningDataModule) -> dict[str, float]:
    """The metrics of the test set, in fp32 on one device, by the code as it is written.

    A compiled model may round otherwise than its frozen twin, which is not compiled.
    """
    trainer: Any = pl.Trainer(
        accelerator=settings.trainer.accelerator,
        devices=1,
        precision="32-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_test_batches=settings.trainer.eval_batches,
    )
    with torch.compiler.set_stance("force_eager"):
        trainer.test(task, datamodule=data, verbose=False)
    return measured(trainer, "test/")
