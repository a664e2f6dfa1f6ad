"""The numbers of three steps with each registered class, as they were when its `revision` was last raised.

`make revisions` keeps them, and what the files that compute are as committed (`bitexp/track/committed.json`).
It refuses numbers that have changed under the same revision, unless torch is another.
"""

from __future__ import annotations

import atexit
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitexp.common.registry import Registry
from bitexp.common.signatures import keywords
from bitexp.config.choices import read_choice
from bitexp.config.optimization import Sgd
from bitexp.data import DATA
from bitexp.kernels import KERNELS
from bitexp.models import MODELS
from bitexp.quant import quantize
from bitexp.quant.calibration import CALIBRATIONS
from bitexp.quant.layers import set_backend
from bitexp.quant.options import REGISTRIES
from bitexp.tasks import LOSSES, OBJECTIVES, TASKS, Seen
from bitexp.track.code import COMMITTED, hashes, revision
from tests.support.data_sets import write_data_sets

FILE = Path(__file__).parents[1] / "files" / "three_steps.json"
STEPS = 3
CLOSE = 1e-5
"""Numbers closer than this share of them are the same: processors round sums differently."""
SECTIONS: dict[str, Registry[Any]] = {
    "model": MODELS,
    "task": TASKS,
    "objective": OBJECTIVES,
    "loss": LOSSES,
    "data": DATA,
    "kernel": KERNELS,
    "calibration": CALIBRATIONS,
    **REGISTRIES,
}
SMALLEST = {"torchvision": "resnet18"}
"""YAML of classes that have none of their own name."""


def waves(*shape: int) -> Tensor:
    """Inputs that are the same everywhere."""
    return torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) * 0.7).float().reshape(shape)


def train(
    model: nn.Module, inputs: Tensor, targets: Tensor, loss: Callable[..., Tensor], lr: float = 0.1
) -> list[float]:
    """The losses before each step, and what the weights add up to after the last."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        value = loss(model(inputs), targets)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return [*losses, sum(p.detach().double().abs().sum().item() for p in model.parameters())]


def of_tokens(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def small() -> nn.Module:
    """A network with latent weights from -1.25 to 1.25, which is beyond where estimators clip."""
    torch.manual_seed(0)
    first, last = nn.Linear(16, 24), nn.Linear(24, 10)
    first.weight.data *= 5
    return nn.Sequential(first, nn.ReLU(), last)


def of_part(key: str, name: str) -> list[float]:
    model = small()
    rest: dict[str, Any] = {"weights": "ternary_mean", "activations": "int8", "norm": "layer"}
    quantize(model, {**rest, key: name}, exclude=["2"])
    return train(model, waves(32, 16), torch.arange(32) % 10, F.cross_entropy)


def of_kernel(name: str) -> list[float]:
    kernel = KERNELS.get(name)
    if kernel.unavailable("cpu"):
        return []
    model = small()
    quantize(model, "ternary_mean", exclude=["2"])
    set_backend(model, kernel.backend)
    return train(model, waves(32, 16), torch.arange(32) % 10, F.cross_entropy)


def of_model(name: str) -> list[float]:
    """In fp64, what is drawn as well: norms over few images make much of how a processor rounds."""
    section = read_choice("model", SMALLEST.get(name, name))
    del section["full_precision"]
    target = MODELS.get(section.pop("name"))
    facts = {"shape": (3, 32, 32), "classes": 10, "vocabulary": 16, "context": 8}
    given = {key: fact for key, fact in facts.items() if key in keywords(target)}
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    try:
        model = target(**{**section, **given}).double()
    finally:
        torch.set_default_dtype(torch.float32)
    if "vocabulary" in given:
        tokens = torch.arange(4 * 8).reshape(4, 8) * 7 % 16
        return train(model, tokens, tokens.roll(1), of_tokens, lr=0.01)
    return train(model, waves(16, 3, 32, 32).double(), torch.arange(16) % 10, F.cross_entropy, lr=1e-3)


def of_task(name: str) -> list[float]:
    section = read_choice("task", name)
    facts = {"classes": 10, "vocabulary": 10, "context": 16, "bytes_per_token": 1.0}
    target = TASKS.get(section.pop("name"))
    given = {key: fact for key, fact in facts.items() if key in keywords(target)}
    settings = Sgd(
        name="sgd", lr=0.1, weight_decay=0.1, momentum=0.9, nesterov=False, stochastic_rounding=False
    )
    task = target(model=small(), optimizer=settings, **{**section, **given})
    optimizer, losses = task.configure_optimizers(), []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = task.training_step((waves(32, 16), torch.arange(32) % 10), 0)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def of_objective(name: str) -> list[float]:
    term = OBJECTIVES.get(name)()
    batch = waves(32, 16), torch.arange(32) % 10

    class Task:
        model = small()
        label_smoothing = 0.1

    return train(Task.model, *batch, lambda out, _: term(out, batch, Task))


def of_calibration(name: str) -> list[float]:
    """What the outputs add up to before and after."""
    model = small()
    model.insert(1, nn.BatchNorm1d(24))  # type: ignore[operator]
    quantize(model, {"weights": {"name": "int", "bits": 3}, "activations": "int8"}, exclude=["3"])
    target, inputs = CALIBRATIONS.get(name), waves(32, 16)
    options = {"iterations": STEPS} if "iterations" in keywords(target) else {}
    with torch.no_grad():
        before = model.eval()(inputs).abs().sum().item()
        target(**options)(model, inputs.chunk(2))
        return [before, model(inputs).abs().sum().item()]


def of_loss(name: str) -> list[float]:
    """All states that a loss may look at are the outputs."""
    term = LOSSES.get(name)()

    def seen(outputs: Tensor) -> Seen:
        states = {part: [outputs.view(4, 8, 10)] for part in ("hidden", "query", "key", "value")}
        return Seen(outputs, states, heads=2)

    return train(small(), waves(32, 16), waves(32, 10) * 2, lambda out, to: term(seen(out), seen(to)))


@cache
def data_sets() -> Path:
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    write_data_sets(folder)
    return folder


def of_data(name: str) -> list[float]:
    """Of three training batches: their shapes, and what inputs and targets add up to in their order."""
    section = read_choice("data", name)
    target = DATA.get(section.pop("name"))
    root, texts = data_sets(), data_sets() / "texts"
    changes: dict[str, Any] = {"workers": 0, "batch_size": 4}
    own: dict[str, dict[str, Any]] = {
        "text": {"files": [str(texts / "train.jsonl")]},
        "huggingface": {"path": str(texts)},
    }
    changes |= own.get(name, {})
    if "data_dir" in section and name != "digits":
        changes["data_dir"] = str(root / "pictures" if name == "image_folder" else root)
    if "documents_limit" in section:
        changes |= {"context": 16}
    data = target(**{**section, **changes}, seed=0)
    data.locate()
    data.setup()
    found: list[float] = []
    for _, (inputs, targets) in zip(range(STEPS), data.train_dataloader(), strict=False):
        found += [float(size) for size in inputs.shape]
        if name != "stdlib":  # its text is that of the Python that runs
            found += [
                (t.double().flatten() * waves(t.numel()).double()).sum().item() for t in (inputs, targets)
            ]
    return found


def numbers(section: str, name: str) -> list[float]:
    """What three steps with a class give."""
    own: dict[str, Callable[[str], list[float]]] = {
        "model": of_model, "task": of_task, "objective": of_objective, "loss": of_loss, "data": of_data,
        "kernel": of_kernel, "calibration": of_calibration,
    }  # fmt: skip
    return own[section](name) if section in own else of_part(section, name)


def classes() -> Iterator[tuple[str, str]]:
    """Everything of bitexp that is registered, by section and name."""
    for section, registry in SECTIONS.items():
        for name in registry.names():
            yield section, name


def close(one: list[float], other: list[float]) -> bool:
    return len(one) == len(other) and all(
        math.isclose(a, b, rel_tol=CLOSE, abs_tol=CLOSE) for a, b in zip(one, other, strict=True)
    )


def problem(section: str, name: str, kept: Any) -> str | None:
    """What is to be done about a class, given what is kept of it; None where it is as it was."""
    number, entry = revision(SECTIONS[section].get(name)), kept.get(f"{section}={name}")
    if entry is None:
        return "it is new: run `make revisions`"
    same = close(numbers(section, name), entry["numbers"])
    if number == entry["revision"] and not same:
        return (
            f"its numbers have changed: set `revision: ClassVar[int] = {number + 1}`, then `make revisions`"
        )
    return None if number == entry["revision"] else "its revision was raised: run `make revisions`"


def main() -> int:
    kept = json.loads(FILE.read_text()) if FILE.exists() else {"torch": None, "classes": {}}
    found: dict[str, dict[str, Any]] = {}
    refused = []
    for section, name in classes():
        word, number = f"{section}={name}", revision(SECTIONS[section].get(name))
        entry = kept["classes"].get(word)
        found[word] = {"revision": number, "numbers": numbers(section, name)}
        if kept["torch"] == torch.__version__ and entry is not None and entry["revision"] == number:
            if close(entry["numbers"], found[word]["numbers"]):
                found[word] = entry
            else:
                refused.append(f"{word}: {problem(section, name, kept['classes'])}")
    if refused:
        sys.stderr.write("\n".join(refused) + "\n")
        return 1
    lines = ",\n".join(f"  {json.dumps(word)}: {json.dumps(entry)}" for word, entry in found.items())
    FILE.write_text(f'{{"torch": {json.dumps(torch.__version__)}, "classes": {{\n{lines}\n}}}}\n')
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(pair)}" for name, pair in hashes().items())
    COMMITTED.write_text(f"{{\n{lines}\n}}\n")
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
