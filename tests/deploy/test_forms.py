"""Stacks of one-bit blocks and deltas of one bit: what they compute, and that files hold it to the bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bitexp.__main__ import main
from bitexp.common.errors import UserError
from bitexp.deploy.forms.calibration import activation_norms
from bitexp.deploy.forms.delta import applied, delta_of, one_bit, read_delta, save_delta, train_scales
from bitexp.deploy.forms.file import full_precision, matrices, signs
from bitexp.deploy.forms.stack import (
    Stack,
    block_values,
    composed,
    decompose,
    in_order,
    read_stack,
    save_stack,
    stacked,
)
from bitexp.deploy.packed_file import PackedFile, unpack
from bitexp.deploy.score import Samples, Score
from bitexp.track.measurements import later_metrics
from tests.support.packed_files import REFERENCE, describe, write
from tests.support.processes import InProcess
from tests.support.training import Train

X = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(5))


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> PackedFile:
    """A small network in full precision, with linear layers and convolutions."""
    path = tmp_path_factory.mktemp("full") / "packed.safetensors"
    write(path, describe("cnn", "full"))
    return full_precision(path)


@pytest.fixture(scope="module")
def stack(file: PackedFile) -> Stack:
    """Its stack."""
    columns = activation_norms(unpack(Path(), file, REFERENCE)[0], matrices(*file), X)
    expected = outputs(file)
    return stacked(file, columns, lambda cut: float((outputs(cut) - expected).square().mean()), 4, 2)


def outputs(file: PackedFile) -> Tensor:
    with torch.no_grad():
        answer: Tensor = unpack(Path(), file, REFERENCE)[0](X)
    return answer


def test_blocks_leave_of_normal_weights_what_is_known() -> None:
    """Blocks of rank 4 on 512 x 512 leave 0.355, 0.125 and 0.054 of the squares; here both are halved."""
    weight, columns = normal(256, 256), torch.ones(256)
    blocks, errors = decompose(weight, columns, 3, 2), []
    for count in range(1, 4):
        rest = weight - composed(blocks[:count], columns, weight.shape)
        errors.append(float(rest.square().sum() / weight.square().sum()))
    assert errors == pytest.approx([0.355, 0.125, 0.054], rel=0.06)


def test_a_block_of_full_rank_is_exact_but_for_its_halves() -> None:
    weight = normal(12, 9)
    (block,) = decompose(weight, torch.ones(9), 1, 9)
    torch.testing.assert_close(block_values(block), weight, rtol=5e-3, atol=5e-3)


def test_columns_that_count_more_are_met_better() -> None:
    weight, columns = normal(64, 64), torch.ones(64)
    columns[:8] = 20.0
    rest = weight - composed(decompose(weight, columns, 2, 2), columns, weight.shape)
    assert float(rest[:, :8].square().mean()) < float(rest[:, 8:].square().mean()) / 2


def test_blocks_are_ordered_by_the_loss_without_them_and_stand_on_each_other() -> None:
    losses = {"a": [5.0, 1.0, 2.0], "b": [3.0, 2.5, 0.5]}
    assert in_order(losses) == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]


def test_any_size_is_a_network_and_more_bytes_are_better(file: PackedFile, stack: Stack) -> None:
    smallest, largest = stack.extent
    errors, counts = [], []
    for limit in (smallest, (smallest + largest) // 2, largest, None):
        cut, count, used = stack.prefix(limit)
        assert limit is None or used <= limit
        errors.append(float((outputs(cut) - outputs(file)).square().mean()))
        counts.append(count)
    assert errors[0] > errors[1] > errors[2] == errors[3]
    assert counts == [0, counts[1], len(stack.order), len(stack.order)]
    assert 0 < counts[1] < len(stack.order)
    with pytest.raises(UserError, match="beside its blocks"):
        stack.prefix(smallest - 1)


def test_a_stack_is_read_back_to_the_bit(stack: Stack, tmp_path: Path) -> None:
    path = tmp_path / "stacked.safetensors"
    save_stack(path, stack)
    assert torch.equal(
        outputs(read_stack(path).prefix(stack.extent[1] - 1)[0]),
        outputs(stack.prefix(stack.extent[1] - 1)[0]),
    )
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        read_stack(path)


def test_a_stack_whose_parts_do_not_fit_is_refused(stack: Stack, tmp_path: Path) -> None:
    path = tmp_path / "stacked.safetensors"
    layer = next(iter(stack.shapes))
    for wrong in (
        Stack(stack.header, stack.order[::-1], stack.shapes, stack.tensors),
        Stack(stack.header, stack.order, {**stack.shapes, layer: [10**9, 9]}, stack.tensors),
        Stack(
            stack.header,
            stack.order,
            stack.shapes,
            {n: t for n, t in stack.tensors.items() if n != f"{layer}.0.left"},
        ),
    ):
        save_stack(path, wrong)
        with pytest.raises(UserError, match="does not describe a stack"):
            read_stack(path)


NO_SIGNS: list[Callable[[Tensor], Tensor]] = [
    lambda signs: signs[:, :-1].contiguous(),
    lambda signs: signs[:-1].contiguous(),
    lambda signs: signs.flatten(),
    lambda signs: signs.float(),
    lambda signs: signs | 128,  # beyond the end of a row
]


@pytest.mark.parametrize("spoiled", NO_SIGNS)
def test_signs_that_are_none_are_a_sentence(
    file: PackedFile, stack: Stack, tmp_path: Path, spoiled: Callable[[Tensor], Tensor]
) -> None:
    layer = "stem.conv.weight"  # nine inputs in two bytes
    name = f"{layer}.0.signs"
    save_stack(tmp_path / "s", replace(stack, tensors={**stack.tensors, name: spoiled(stack.tensors[name])}))
    with pytest.raises(UserError, match="make no weights"):
        read_stack(tmp_path / "s").prefix()
    header, tensors = delta_of(file, fine_tuned(file))
    name = f"{layer}.signs"
    with pytest.raises(UserError, match="does not describe a delta"):
        applied(file, (header, {**tensors, name: spoiled(tensors[name])}))


@pytest.mark.parametrize("shape", [[], [32.0, 9.0], [8, -1, -9]])
def test_shapes_of_a_stack_that_are_none_are_a_sentence(
    stack: Stack, tmp_path: Path, shape: list[int]
) -> None:
    layer = "stem.conv.weight"
    rows = stack.shapes[layer][0]
    wrong = [type(shape[0])(rows), *shape[1:]] if shape else []
    save_stack(tmp_path / "s", replace(stack, shapes={**stack.shapes, layer: wrong}))
    with pytest.raises(UserError, match="stack"):
        read_stack(tmp_path / "s").prefix()


def test_norms_of_activations_are_those_of_the_columns(file: PackedFile, tmp_path: Path) -> None:
    found = activation_norms(unpack(Path(), file, REFERENCE)[0], matrices(*file), X)
    assert torch.equal(found["stem.conv.weight"], torch.ones(9))  # a single channel, 3 x 3
    assert found["blocks.0.conv.weight"].unflatten(0, (-1, 9)).var(1).max() < 1e-10
    write(tmp_path / "packed.safetensors", describe("mlp", "full"))
    mlp = full_precision(tmp_path / "packed.safetensors")
    found = activation_norms(unpack(Path(), mlp, REFERENCE)[0], matrices(*mlp), X)
    norms = X.flatten(1).norm(dim=0)
    torch.testing.assert_close(found["layers.0.weight"], norms / norms.mean())


def fine_tuned(base: PackedFile, amount: float = 0.02) -> PackedFile:
    """The same network, a little different everywhere."""
    draws = torch.Generator().manual_seed(3)
    changed = {
        name: tensor + amount * torch.randn(tensor.shape, generator=draws)
        if "weight" in name or "bias" in name
        else tensor
        for name, tensor in base[1].items()
    }
    return base[0], changed


def test_one_bit_leaves_of_a_normal_change_what_signs_leave() -> None:
    base, change = normal(300, 300), torch.randn(300, 300, generator=torch.Generator().manual_seed(9))
    packed, scale = one_bit(base, base + change)
    left = change - signs(packed, 300) * scale
    assert float(left.square().sum() / change.square().sum()) == pytest.approx(1 - 2 / torch.pi, abs=0.01)
    assert packed.nbytes == 300 * 38  # rows of 300 bits


def test_a_delta_brings_the_base_near_to_what_was_fine_tuned_and_trained_scales_nearer(
    file: PackedFile, tmp_path: Path
) -> None:
    fine = fine_tuned(file)
    delta = delta_of(file, fine)
    expected = outputs(fine)

    def error(of: PackedFile) -> float:
        return float((outputs(of) - expected).square().mean())

    errors = [error(file), error(applied(file, delta))]
    model = unpack(Path(), fine, REFERENCE)[0]
    train_scales(file, delta, model, [X] * 60, 1e-3)
    errors.append(error(applied(file, delta)))
    assert errors[0] > errors[1] > errors[2]
    path = tmp_path / "delta.safetensors"
    save_delta(path, delta)
    assert torch.equal(outputs(applied(file, read_delta(path))), outputs(applied(file, delta)))
    with pytest.raises(UserError, match="another base"):
        applied(fine, read_delta(path), path)
    with pytest.raises(UserError, match="not a stack"):
        read_stack(path)


def test_other_networks_have_no_delta_and_quantized_ones_no_form(file: PackedFile, tmp_path: Path) -> None:
    path = tmp_path / "packed.safetensors"
    write(path, describe("mlp", "full"))
    with pytest.raises(UserError, match="one network"):
        delta_of(file, full_precision(path))
    write(path, describe("mlp", "ternary_mean"))
    with pytest.raises(UserError, match="quantized already"):
        full_precision(path)


def test_a_size_of_a_stack_is_measured_once_and_kept(
    train: Train, tmp_path: Path, in_process: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, call = train("quantizer=full").folder, in_process(main, "bitexp")
    assert call("stack", run, "--blocks", 2, "--rank", 1, "--samples", 20).code == 0
    smallest, largest = read_stack(run / "stacked.safetensors").extent
    scored, score = list[Samples](), Samples.score

    def counted(samples: Samples, model: Callable[[Tensor], Tensor]) -> Score:
        scored.append(samples)
        return score(samples, model)

    monkeypatch.setattr(Samples, "score", counted)
    for sizes in ((smallest, largest), (largest, largest + 1)):
        ended = call("evaluate", run, "--bytes", ",".join(map(str, sizes)), "--samples", 30)
        assert ended.code == 0, ended.err
    assert len(scored) == 3  # one of the four was known
    metrics = later_metrics(run, None)
    assert {name.split("/")[1] for name in metrics} == {str(n) for n in (smallest, largest, largest + 1)}
    assert metrics[f"stack/{smallest}/blocks"] == 0
    assert metrics[f"stack/{largest}/bytes"] == metrics[f"stack/{largest + 1}/bytes"] == largest
    assert f"{metrics[f'stack/{largest}/accuracy']:.4f}" in ended.out
