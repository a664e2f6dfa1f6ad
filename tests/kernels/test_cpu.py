"""The compiled CPU kernel: the reference's bits with every instruction set, whatever it is asked for."""

from __future__ import annotations

import copy
import functools
import os
import pickle
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from bitexp.kernels import KERNELS
from bitexp.kernels.cpu import Cpu, Packed, layout, memory, threads
from bitexp.kernels.cpu.jit import missing

if missing():
    pytest.skip(str(missing()), allow_module_level=True)


from bitexp.kernels.cpu.dots import supported

ROOT = Path(__file__).parents[2]
REFERENCE = KERNELS.get("reference")
every_isa = pytest.mark.parametrize("isa", supported())
RANGES = {"binary": (-1, 1), "ternary": (-1, 1), "int2": (-1, 2), "int4": (-8, 7)}
Case = tuple[Tensor, Tensor, Tensor, Tensor | None]


def case(
    kind: str, tokens: int, inputs: int, outputs: int, per_output: bool, bias: bool, seed: int = 0
) -> Case:
    """Activations, codes, steps and bias."""
    draw = torch.Generator().manual_seed(seed)
    low, high = RANGES[kind]
    codes = torch.randint(low, high + 1, (outputs, inputs), dtype=torch.int8, generator=draw)
    if kind == "binary":
        codes = codes.float().sub(0.5).sign().to(torch.int8)
    steps = torch.rand(outputs, generator=draw) if per_output else torch.tensor(0.037)
    added = torch.randn(outputs, generator=draw) if bias else None
    return torch.randn(tokens, inputs, generator=draw), codes, steps, added


def assert_same(isa: str, x: Tensor, codes: Tensor, steps: Tensor, *rest: Any) -> None:
    """The kernel gives what the reference gives, to the bit."""
    expected = REFERENCE.linear(x, (codes, steps), *rest)
    kernel = Cpu(isa)
    got = kernel.linear(x, kernel.prepare(codes, steps), *rest)
    assert got.shape == expected.shape
    assert torch.equal(got, expected)


@every_isa
@given(
    kind=st.sampled_from(list(RANGES)),
    tokens=st.sampled_from([0, 1, 2, 3, 5, 63, 64, 65, 97, 128]),
    inputs=st.one_of(st.integers(1, 80), st.sampled_from([127, 256, 1023, 4099])),
    outputs=st.one_of(st.integers(1, 20), st.sampled_from([63, 64, 65, 130])),
    per_output=st.booleans(),
    bias=st.sampled_from(["none", "plain", "scaled"]),
    qmax=st.sampled_from([127, 128, 7]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape_gives_the_bits_of_the_reference(
    isa: str,
    kind: str,
    tokens: int,
    inputs: int,
    outputs: int,
    per_output: bool,
    bias: str,
    qmax: int,
    seed: int,
) -> None:
    x, codes, steps, added = case(kind, tokens, inputs, outputs, per_output, bias != "none", seed)
    assert_same(isa, x, codes, steps, added, qmax, bias == "scaled")


@every_isa
@pytest.mark.parametrize("kind", RANGES)
@pytest.mark.parametrize("tokens", [1, 2, 9])
def test_saturating_rows_do_not_overflow(isa: str, kind: str, tokens: int) -> None:
    """6,912 inputs, all codes at their largest and all activations at +-127: int16 sums would wrap."""
    x = torch.full((tokens, 6912), 3.7)
    x[-1, ::2] *= -1
    for code in {*RANGES[kind]} - {0}:
        codes = torch.full((70, 6912), code, dtype=torch.int8)
        codes[1] = RANGES[kind][0]
        sums = (127 * x.sign().long()) @ codes.long().t()
        expected = sums.float() * (x.abs().amax(1, keepdim=True) / 127 * torch.tensor(0.5))
        kernel = Cpu(isa)
        got = kernel.linear(x, kernel.prepare(codes, torch.tensor(0.5)), None, 127, False)
        assert torch.equal(got, expected)


@every_isa
def test_rows_of_zeros_of_nan_and_of_infinity(isa: str) -> None:
    x, codes, steps, bias = case("ternary", 8, 100, 70, False, True)
    x[1], x[2, 3], x[3, 99], x[4, 0], x[5] = 0, torch.nan, torch.inf, -torch.inf, x[5] * 1e38
    x[6] *= 1e-42
    kernel = Cpu(isa)
    expected = REFERENCE.linear(x, (codes, steps), bias, 127, False)
    got = kernel.linear(x, kernel.prepare(codes, steps), bias, 127, False)
    assert expected[2:5].isnan().all()
    assert torch.equal(got.nan_to_num(7.5), expected.nan_to_num(7.5))


@every_isa
@pytest.mark.parametrize("kind", RANGES)
@pytest.mark.parametrize("outputs", [1, 63, 64, 130])
def test_every_output_is_written_and_nothing_else(isa: str, kind: str, outputs: int) -> None:
    x, codes, steps, _ = case(kind, 7, 50, outputs, True, False)
    prepared = Cpu(isa).prepare(codes, steps)
    memory = torch.full((9, outputs), torch.nan)
    y = memory[1:8]
    scratch = threads.scratch(prepared.scratch)
    prepared.run(127, 0, 0, x.data_ptr(), y.data_ptr(), scratch, 0, 7, 0, prepared.streams)
    assert torch.equal(y, REFERENCE.linear(x, (codes, steps), None, 127, False))
    assert memory[0].isnan().all()
    assert memory[8].isnan().all()


@every_isa
@given(token=st.integers(0, 100), stream=st.integers(0, 3), seed=st.integers(0, 99))
def test_ranges_of_tokens_and_streams_make_up_the_whole(isa: str, token: int, stream: int, seed: int) -> None:
    x, codes, steps, bias = case("ternary", 100, 40, 170, True, True, seed)
    assert bias is not None
    prepared = Cpu(isa).prepare(codes, steps)
    y = torch.full((100, 170), torch.nan)
    scratch = threads.scratch(prepared.scratch)
    where = (127, bias.data_ptr(), 0, x.data_ptr(), y.data_ptr(), scratch)
    for tokens in ((0, token), (token, 100)):
        for streams in ((0, stream), (stream, prepared.streams)):
            prepared.run(*where, *tokens, *streams)
    assert torch.equal(y, REFERENCE.linear(x, (codes, steps), bias, 127, False))


@pytest.mark.parametrize(
    ("shape", "bias", "said"),
    [
        ((3, 41), None, r"\[3, 41\] do not end in 40 features"),
        ((), None, r"\[\] do not end in 40"),
        ((3, 40), 23, r"a bias of shape \[23\] does not fit 24 outputs"),
        ((3, 40), 1, r"a bias of shape \[1\] does not fit 24 outputs"),
    ],
)
def test_a_wrong_shape_is_refused(shape: tuple[int, ...], bias: int | None, said: str) -> None:
    kernel = Cpu()
    prepared = kernel.prepare(torch.ones(24, 40, dtype=torch.int8), torch.tensor(1.0))
    added = None if bias is None else torch.zeros(bias)
    for x in (torch.zeros(shape), torch.zeros(shape, dtype=torch.bfloat16)):  # compiled, and not
        with pytest.raises(ValueError, match=said):
            kernel.linear(x, prepared, added, 127, False)


def test_steps_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[3\] steps do not fit 24 outputs"):
        Cpu().prepare(torch.ones(24, 40, dtype=torch.int8), torch.ones(3))


WIDE = torch.arange(-100, 100, dtype=torch.int8).reshape(10, 20)
TERNARY = (WIDE % 3 - 1).to(torch.int8)


@pytest.mark.parametrize("codes", [TERNARY, WIDE])
@pytest.mark.parametrize("qmax", [0, 127])
def test_what_is_not_compiled_is_computed_all_the_same(codes: Tensor, qmax: int) -> None:
    """Float activations, wide codes, steps per group, gradients, other dtypes, transforms."""
    kernel, steps, x = Cpu(), torch.tensor(0.3), torch.randn(4, 20)
    prepared = kernel.prepare(codes, steps)
    assert isinstance(prepared, Packed) == (codes is TERNARY)
    ours = functools.partial(kernel.linear, prepared=prepared, bias=None, act_qmax=qmax, scaled_bias=False)
    theirs = functools.partial(
        REFERENCE.linear, prepared=(codes, steps), bias=None, act_qmax=qmax, scaled_bias=False
    )
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(torch.vmap(ours)(x[:, None]), torch.vmap(theirs)(x[:, None]))
    grads = []
    for function in (ours, theirs):
        leaf = x.clone().requires_grad_()
        function(leaf).sum().backward()
        grads.append(leaf.grad)
    assert torch.equal(*grads)
    groups = torch.rand(10, 2)
    grouped = kernel.linear(x, kernel.prepare(codes, groups), None, qmax, False)
    assert torch.equal(grouped, REFERENCE.linear(x, (codes, groups), None, qmax, False))


class Function(torch.nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.forward = function


def test_what_follows_the_operations_of_torch_sees_them() -> None:
    """Traces, graphs, fake tensors and derivatives: a product past torch would be missing there."""
    x, codes, steps, bias = case("ternary", 3, 20, 70, True, True)
    kernel = Cpu()
    prepared = kernel.prepare(codes, steps)

    def function(x: Tensor) -> Tensor:
        return kernel.linear(x, prepared, bias, 127, False)

    other = torch.randn(3, 20)
    expected = function(other)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is old, and shapes are fixed in a trace
        traced = torch.jit.trace(function, (x,), check_trace=False)
    assert torch.equal(traced(other), expected)
    assert torch.equal(make_fx(function)(x)(other), expected)
    assert torch.equal(torch.compile(function, backend="eager", fullgraph=True)(other), expected)
    exported = torch.export.export(Function(function), (x,), strict=False)
    assert torch.equal(exported.module()(other), expected)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert function(mode.from_tensor(x)).shape == (3, 70)
    leaf = x.clone().requires_grad_()
    function(leaf).sum().backward()
    assert torch.equal(torch.func.grad(lambda x: function(x).sum())(x), leaf.grad)


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
def test_outputs_are_fp32_whatever_the_default_is(default: torch.dtype) -> None:
    x, codes, steps, bias = case("ternary", 3, 20, 70, True, True)
    expected = REFERENCE.linear(x, (codes, steps), bias, 127, False)
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        got = Cpu().linear(x, Cpu().prepare(codes, steps), bias, 127, False)
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(got, expected)


def test_prepared_weights_are_copied_and_pickled() -> None:
    x, codes, steps, bias = case("int4", 5, 33, 70, True, True)
    kernel = Cpu()
    prepared = kernel.prepare(codes, steps)
    expected = kernel.linear(x, prepared, bias, 127, False)
    for twin in (copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared))):
        assert twin.weights.data_ptr() != prepared.weights.data_ptr()
        assert not set(twin.run.args[:2]) & set(prepared.run.args[:2])
        assert torch.equal(kernel.linear(x, twin, bias, 127, False), expected)
    assert torch.equal(prepared.codes(), codes)


# the layout


@given(
    kind=st.sampled_from(list(RANGES)),
    outputs=st.integers(1, 130),
    inputs=st.integers(1, 100),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_layout_holds_the_codes(kind: str, outputs: int, inputs: int, seed: int) -> None:
    _, codes, _, _ = case(kind, 1, inputs, outputs, False, False, seed)
    found = layout.digits_of(codes)
    assert found is not None
    bits, digits = found
    packed = layout.pack(digits, bits)
    assert packed.shape == (-(-outputs // 64), -(-inputs * bits // 32), 256)
    assert torch.equal(layout.unpack(packed, bits, outputs, inputs), codes)


def test_a_byte_of_the_layout_is_where_it_is_said_to_be() -> None:
    """Output 70, input 21 in two bits: stream 1, block 1, panel 0, group 1, byte 4 * 6 + 1."""
    codes = torch.full((128, 32), -1, dtype=torch.int8)
    codes[70, 21] = 1
    found = layout.digits_of(codes * 1 + (codes == 1) * 1)  # 2 where it was 1: two bits
    assert found is not None
    packed = layout.pack(found[1], found[0])
    (place,) = packed.nonzero().tolist()
    assert place == [1, 1, 25]
    assert int(packed[1, 1, 25]) == 3 << 2


@pytest.mark.parametrize(
    ("codes", "bits"),
    [([-1, 1], 1), ([1, 1], 1), ([-1, 0], 2), ([0, 0], 2), ([-1, 2], 2), ([-2, 1], 4), ([-8, 7], 4)],
)
def test_codes_take_the_fewest_bits(codes: list[int], bits: int) -> None:
    found = layout.digits_of(torch.tensor([codes], dtype=torch.int8))
    assert found is not None
    assert found[0] == bits


def test_codes_of_more_than_four_bits_have_no_layout() -> None:
    assert layout.digits_of(torch.tensor([[-9, 0]], dtype=torch.int8)) is None
    assert layout.digits_of(torch.tensor([[8, 0]], dtype=torch.int8)) is None


# threads


@pytest.fixture
def three_threads() -> Any:
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("tokens", [1, 5, 700])
def test_several_threads_give_the_same_bits(
    tokens: int, three_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "WORTH", 0)
    x, codes, steps, bias = case("ternary", tokens, 300, 330, True, True)
    assert_same(supported()[0], x, codes, steps, bias, 127, False)


def test_a_small_product_starts_no_thread(three_threads: None) -> None:
    threads._pool.clear()
    x, codes, steps, bias = case("ternary", 8, 64, 64, True, True)
    assert_same(supported()[0], x, codes, steps, bias, 127, False)
    assert not threads._pool


def test_calls_from_several_threads_at_once(three_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "WORTH", 0)
    kernel = Cpu()
    x, codes, steps, bias = case("binary", 400, 100, 200, False, True)
    prepared = kernel.prepare(codes, steps)
    expected = REFERENCE.linear(x, (codes, steps), bias, 127, False)
    same: list[bool] = []

    def work() -> None:
        same.extend(torch.equal(kernel.linear(x, prepared, bias, 127, False), expected) for _ in range(20))

    callers = [threading.Thread(target=work) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert same == [True] * 80


def test_an_error_in_a_thread_is_raised(three_threads: None) -> None:
    def fails(*ranges: int) -> None:
        if ranges[3]:
            raise ArithmeticError(f"{ranges}")

    with pytest.raises(ArithmeticError):
        threads.in_threads(fails, (), 1, 1, 3)


@given(count=st.integers(0, 50), among=st.integers(1, 9))
def test_shares_make_up_the_whole(count: int, among: int) -> None:
    found = threads.shares(count, among)
    assert [n for a, b in found for n in range(a, b)] == list(range(count))
    assert len(found) == min(count, among)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_its_own_threads(
    start: Callable[..., Any], three_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "WORTH", 0)
    x, codes, steps, bias = case("ternary", 5, 100, 200, True, True)
    kernel = Cpu()
    prepared = kernel.prepare(codes, steps)
    expected = kernel.linear(x, prepared, bias, 127, False)
    assert threads._pool

    def work() -> int:  # torch's own threads would hang in a fork, so it compares without them
        return kernel.linear(x, prepared, bias, 127, False).tolist() != expected.tolist()

    ended = start(work).wait()
    assert ended.code == 0, ended.err


def test_numpy_agrees_about_the_codes() -> None:
    """The codes by which a whole layer is computed, read off a layer with unit weights."""
    x = torch.randn(3, 64)
    kernel = Cpu()
    prepared = kernel.prepare(torch.eye(64, dtype=torch.int8), torch.tensor(1.0))
    absmax = np.abs(x.numpy()).max(1, keepdims=True)
    codes = np.rint(x.numpy() * (np.float32(1) / absmax * np.float32(127)))
    expected = codes * (absmax / np.float32(127))
    assert np.array_equal(kernel.linear(x, prepared, None, 127, False).numpy(), expected)


def test_packed_weights_share_huge_pages_and_go_with_the_last_of_them(monkeypatch: Any) -> None:
    monkeypatch.setattr(memory, "_arena", [])
    first, second = (memory.copied(torch.full((3, 100), n, dtype=torch.uint8)) for n in (1, 2))
    assert [int(t.sum()) for t in (first, second)] == [300, 600]
    assert second.data_ptr() - first.data_ptr() == 320  # whole cache lines
    assert first.data_ptr() % memory.LINE == 0
    large = memory.copied(torch.zeros(memory.ARENA + memory.HUGE, dtype=torch.uint8))
    assert abs(large.data_ptr() - first.data_ptr()) > memory.ARENA - memory.HUGE


def test_memory_that_was_set_aside_in_inference_mode_serves_outside_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "_arena", [])
    with torch.inference_mode():
        memory.copied(torch.zeros(3, 100, dtype=torch.uint8))
    assert int(memory.copied(torch.ones(3, 100, dtype=torch.uint8)).sum()) == 300


def test_a_layer_is_copied_and_pickled_without_the_memory_of_others() -> None:
    prepared = KERNELS.get("cpu").prepare(torch.ones(64, 64, dtype=torch.int8), torch.tensor(0.5))
    assert len(pickle.dumps(prepared)) < 20_000
    x = torch.randn(2, 64)
    again = pickle.loads(pickle.dumps(prepared))
    assert torch.equal(again.linear(x, None, 127, False), prepared.linear(x, None, 127, False))
