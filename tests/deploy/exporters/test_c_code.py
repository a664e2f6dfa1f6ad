"""C code computes what the packed file computes: by this machine's compiler, with its sanitizers."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitexp.common.errors import UserError
from bitexp.data.images.batches import ImageBatches, ImagesInMemory
from bitexp.deploy.description import Description
from bitexp.deploy.engines import ENGINES
from bitexp.deploy.exporters.c_code import functions
from bitexp.deploy.exporters.c_pixels import Pixels
from bitexp.deploy.exporters.exporter import InexpressibleError, Packed
from bitexp.deploy.exporters.writing import build, write
from bitexp.deploy.packing import layout_of
from bitexp.quant.absmax import absmax_codes
from bitexp.quant.levels import BINARY, TERNARY, Levels
from bitexp.quant.norms import normalize
from tests.support.exports import described, packed, tokens
from tests.support.marks import others_slow
from tests.support.quantizers import make_quantizer

GCC = ["gcc", "-std=c99", "-O2", "-Wall", "-Wextra", "-Werror"]
IMAGE = {"channels": 1, "size": [8, 8], "divide_by": 16, "mean": [0.3], "std": [0.4]}
MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": [24, 17], "activation": "gelu", "dropout": 0.0},
    "shallow": {"hidden": [9], "activation": "relu", "dropout": 0.0},
    "cnn": {"widths": [4, 6, 5], "pool": [2, 2, 1], "kernel": 3, "dropout": 0.0},
    "vit": {
        "patch": 4, "dim": 8, "depth": 2, "heads": 2, "mlp_ratio": 2.0, "dropout": 0.0, "pool": "cls"
    },
}  # fmt: skip
SMALL = ("size", "auto")
KEPT = {"mlp": ["head"], "shallow": ["head"], "cnn": ["head"], "vit": ["patch_embed", "pos_embed", "head"]}


def classifier(folder: Path, model: str, quantizer: str = "ternary_mean", **changes: Any) -> Packed:
    """A packed file of a small network for images."""
    sizes = {"shape": (1, 8, 8), "classes": 5, **MODELS[model]}
    chosen = make_quantizer(quantizer, **changes).to_json()
    kind = "mlp" if model == "shallow" else model
    return packed(folder, Description(kind, sizes, chosen, exclude=KEPT[model]), dict(IMAGE))


def images(count: int = 4, shape: tuple[int, ...] = (1, 8, 8), white: int = 16) -> tuple[Tensor, Tensor]:
    """Random bytes, and how a network sees them."""
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randint(white + 1, (count, *shape), generator=generator).to(torch.uint8)
    mean, std = IMAGE["mean"] * shape[0], IMAGE["std"] * shape[0]
    seen = ImageBatches(ImagesInMemory(pixels, torch.zeros(count)), white, mean, std, None)
    return pixels, seen.finish(*seen[0, list(range(count))])[0]


def address(tensor: Tensor) -> ctypes.c_void_p:
    """Of the first number."""
    return ctypes.c_void_p(tensor.data_ptr())


def difference(source: Packed, folder: Path, x: Tensor) -> float:
    """How far logits are apart, of their largest, after the folder's own test was passed."""
    checked = ["-fsanitize=address,undefined", "-fno-sanitize-recover"]
    words = [*GCC, *checked, "model.c", "test.c", "-lm", "-o", "test"]
    subprocess.run(words, cwd=folder, check=True)
    ended = subprocess.run([folder / "test"], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert " 0 wrong" in ended.stdout
    with torch.no_grad():
        ours = source.model(x)
    theirs = ENGINES.get("c")(folder).outputs(x)
    return float((ours - theirs).abs().max() / ours.abs().max())


@pytest.mark.parametrize(("optimize", "input"), others_slow([SMALL, ("speed", "floats")], [SMALL]))
@pytest.mark.parametrize(
    ("model", "quantizer", "changes"),
    [
        ("mlp", "ternary_median", {}),
        ("cnn", "ternary_mean", {"weights": {"granularity": "channel"}}),
        ("vit", "reloaded", {}),
        ("shallow", "binary", {"norm": "none"}),
        ("mlp", "full", {}),
        ("cnn", "full_norm", {}),
    ],
    ids=["mlp", "cnn", "vit", "binary", "full", "full, normed"],
)
def test_classifiers(
    tmp_path: Path, optimize: str, input: str, model: str, quantizer: str, changes: dict[str, Any]
) -> None:
    source = classifier(tmp_path, model, quantizer, **changes)
    write(build("c", {"optimize": optimize, "input": input}), source, tmp_path / "c")
    assert difference(source, tmp_path / "c", images()[1]) < 1e-6


@pytest.mark.parametrize(
    ("quantizer", "changes"), [("lsq", {"weights": {"bits": 2}}), ("int", {"weights": {"bits": 4}})]
)
def test_more_bits(tmp_path: Path, quantizer: str, changes: dict[str, Any]) -> None:
    source = classifier(tmp_path, "mlp", quantizer, **changes, activations="int8")
    write(build("c", {"input": "floats"}), source, tmp_path / "c")
    assert difference(source, tmp_path / "c", torch.randn(4, 1, 8, 8)) < 1e-6


@pytest.mark.parametrize("sizes", [{}, {"sub_norm": True, "activation": "relu2", "tied": True}])
def test_decoders(tmp_path: Path, sizes: dict[str, Any]) -> None:
    source = packed(tmp_path, described("ternary_mean", depth=2, **sizes))
    write(build("c", {}), source, tmp_path / "c")
    assert difference(source, tmp_path / "c", tokens(2, 30)) < 2e-6
    engine: Any = ENGINES.get("c")(tmp_path / "c")
    logits = (ctypes.c_float * 256)()
    engine.library.model_reset()
    for place in range(64):
        assert engine.library.model_step(place, logits) == 0
    assert engine.library.model_step(0, logits) == -1  # the context is full
    engine.library.model_reset()
    assert engine.library.model_step(256, logits) == -1  # no such token


def test_pixels_are_prepared_as_in_training(tmp_path: Path) -> None:
    write(build("c", {"input": "floats"}), classifier(tmp_path, "mlp"), tmp_path / "c")
    engine: Any = ENGINES.get("c")(tmp_path / "c")
    pixels, seen = images(1)
    found = torch.empty(64)
    engine.library.model_prepare(address(pixels), address(found))
    assert torch.equal(found, seen.flatten())


def test_an_image_in_bytes_takes_no_memory_in_floats(tmp_path: Path) -> None:
    exported, _ = write(build("c", {}), classifier(tmp_path, "mlp"), tmp_path / "c")
    code = (tmp_path / "c" / "model.c").read_text()
    assert re.findall(r"^static (\w+ \w+\[\d+\]);", code, re.MULTILINE) == [
        "float memory[24]",
        "int8_t q[64]",
    ]
    assert "160 B of static memory" in exported.exact[-1]
    readme, header = ((tmp_path / "c" / name).read_text() for name in ("README.md", "model.h"))
    for text in (readme, header):
        assert "8 rows of 8 bytes, from 0 (black) to 16; they are normalized while they are read" in text
    with pytest.raises(UserError, match="input=floats"):
        ENGINES.get("c")(tmp_path / "c").outputs(torch.randn(1, 1, 8, 8))


@pytest.mark.parametrize(
    ("about", "input", "why"),
    [
        ({}, "pixels", "does not say how they are normalized"),
        ({"tokenizer": "bytes"}, "floats", "it reads tokens"),
    ],
    ids=["unknown images", "text"],
)
def test_an_input_that_there_cannot_be_is_refused(
    tmp_path: Path, about: dict[str, Any], input: str, why: str
) -> None:
    sizes = {"shape": (1, 8, 8), "classes": 5, **MODELS["mlp"]}
    images = Description("mlp", sizes, make_quantizer("binary").to_json(), exclude=["head"])
    source = packed(tmp_path, described("b158") if about else images, about)
    with pytest.raises(UserError, match=why):
        write(build("c", {"input": input}), source, tmp_path / "c")


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """All functions of the runtime, not static."""
    folder = tmp_path_factory.mktemp("runtime")
    rows = ["row_pack1", "row_pack2", "row_pack4", "row_pack5", "row_pack8"]
    pixels = Pixels.of({**IMAGE, "channels": 3, "size": [5, 13], "mean": [0.3] * 3, "std": [0.4] * 3})
    assert pixels is not None
    bodies = [pixels.function, *functions([*rows, "codes", "norm", "pixel_codes"])]
    exposed = [re.sub(r"^static ", "", body, flags=re.MULTILINE) for body in bodies]
    head = ["#include <math.h>", "#include <stddef.h>", "#include <stdint.h>", *pixels.declared()]
    (folder / "runtime.c").write_text("\n".join([*head, *exposed]))
    words = [*GCC, "-Wno-missing-prototypes", "-shared", "-fPIC", "runtime.c", "-lm", "-o", "runtime.so"]
    subprocess.run(words, cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "runtime.so"))


@pytest.mark.parametrize("inputs", [1, 5, 7, 64, 203])
@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("pack1", BINARY),
        ("pack5", TERNARY),
        ("pack2", TERNARY),
        ("pack2", Levels.odd(2)),
        ("pack4", Levels.signed(4)),
        ("pack8", Levels.symmetric(8)),
    ],
)
def test_sums_of_codes_are_exact(runtime: ctypes.CDLL, name: str, levels: Levels, inputs: int) -> None:
    generator = torch.Generator().manual_seed(inputs)
    digits = torch.randint(levels.count, (1, inputs), generator=generator)
    codes = (digits * levels.stride + levels.low).to(torch.int8)
    x = torch.randint(-127, 128, (inputs,), generator=generator).to(torch.int8)
    layout = layout_of(name, levels)
    row = layout.pack(codes)
    found = runtime[f"row_{name}"](
        ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(row.data_ptr()), inputs, levels.low, levels.stride
    )
    assert found == int((codes[0].long() * x.long()).sum())


@pytest.mark.parametrize("features", [1, 3, 64, 65, 200])
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_norms_and_codes_are_equal_to_the_bit(runtime: ctypes.CDLL, kind: Any, features: int) -> None:
    x = torch.randn(9, features, generator=torch.Generator().manual_seed(features)) * 3 + 1
    y, q = torch.empty_like(x), torch.empty(features, dtype=torch.int8)
    eps = ctypes.c_float(1e-5)
    expected = normalize(x, kind, -1)[0]
    for place in (y, x):  # elsewhere, and over its input
        sizes = (9, features, features, 1, int(kind == "layer"))
        runtime.norm(address(place), address(x), *sizes, eps, None, None)
        assert torch.equal(place, expected)
    runtime.codes.restype = ctypes.c_float
    for row in expected:
        scale = runtime.codes(address(q), address(row), features, ctypes.c_float(127))
        codes, scales = absmax_codes(row, 127, (-1,))
        assert torch.equal(q, codes)
        assert scale == float(scales)


@pytest.mark.parametrize("qmax", [127, 128])
@pytest.mark.parametrize("kind", ["none", "layer", "rms"])
def test_codes_of_pixels_are_equal_to_the_bit(runtime: ctypes.CDLL, kind: Any, qmax: int) -> None:
    pixels, seen = images(9, (3, 5, 13), 16)
    q = torch.empty(3 * 5 * 13, dtype=torch.int8)
    runtime.pixel_codes.restype = ctypes.c_float
    normed = (int(kind != "none"), int(kind == "layer"), ctypes.c_float(1e-5))
    for image, row in zip(pixels, normalize(seen.flatten(1), kind, -1)[0], strict=True):
        scale = runtime.pixel_codes(address(q), address(image), len(q), ctypes.c_float(qmax), *normed)
        codes, scales = absmax_codes(row, qmax, (-1,))
        assert torch.equal(q, codes)
        assert scale == float(scales)


class Other(nn.Module):
    """A network that says nothing of what it computes."""


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"weights": {"granularity": "group", "group_size": 8}}, "granularity=channel"),
        ({"transform": "hadamard"}, "transform"),
        ({"activations": "none"}, "int8"),
    ],
)
def test_what_has_no_c_code_is_refused(changes: dict[str, Any], hint: str) -> None:
    model = described("ternary_mean", changes).build()
    with pytest.raises(InexpressibleError, match=hint):
        build("c", {}).check(model)
    with pytest.raises(InexpressibleError, match="Other"):
        build("c", {}).check(Other())


@pytest.mark.slow
@pytest.mark.parametrize("model", [*MODELS, "decoder"])
def test_a_microcontroller_computes_the_same(tmp_path: Path, model: str) -> None:
    for program in ("arm-none-eabi-gcc", "qemu-system-arm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    source = packed(tmp_path, described("b158")) if model == "decoder" else classifier(tmp_path, model)
    write(build("c", {}), source, tmp_path / "c")
    x = tokens(2, 9) if model == "decoder" else images(3)[1]
    engine: Any = ENGINES.get("cortex-m4")(tmp_path / "c")
    with torch.no_grad():
        ours = source.model(x)
    assert float((ours - engine.outputs(x)).abs().max()) < 2e-6 * float(ours.abs().max())
    assert 1000 < engine.flash < 200_000
    assert engine.ram < 100_000
    assert 256 < engine.stack < 2048
    assert engine.instructions > 1000
