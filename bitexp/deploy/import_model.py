"""A model of somebody else as a packed file: it is evaluated, written with and exported like one of ours.

    python -m bitexp import FOLDER --out model.safetensors        a folder of transformers
    python -m bitexp import FILE.gguf --out model.safetensors     a file of llama.cpp
    python -m bitexp generate model.safetensors --prompt "def "

LLaMA, Mistral, Qwen and BitNet, in floats or with packed ternary codes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitexp.common.console import Report
from bitexp.common.errors import UserError
from bitexp.common.format import amount, counted, path_text, size
from bitexp.common.program import run_program

if TYPE_CHECKING:
    from torch import Tensor

    from bitexp.deploy.description import Description
    from bitexp.deploy.sources.gguf import Gguf
    from bitexp.deploy.sources.transformers import Transformers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.add_argument("source", help="a folder of transformers, or a GGUF file")
    parser.add_argument("--out", type=Path, required=True, help="the packed file to write")
    parser.add_argument("--tokenizer", help="bytes, or a tokenizer.json (default: the one of the model)")


def run(options: argparse.Namespace) -> None:
    """Writes the packed file.

    Raises:
        UserError: the source is missing, damaged, or not what the decoder computes.
    """
    from bitexp.deploy.description import Description
    from bitexp.deploy.packed_file import check_fits, read_packed, write_packed
    from bitexp.deploy.sources import find_source
    from bitexp.deploy.sources.base import told
    from bitexp.deploy.sources.gguf import Gguf
    from bitexp.deploy.sources.names import in_floats
    from bitexp.deploy.sources.transformers import Transformers

    if options.out.suffix != ".safetensors":
        raise UserError(f"--out={options.out} should end with .safetensors, as packed files do")
    source = find_source(options.source, "the source")
    if not isinstance(source, Gguf | Transformers):
        raise UserError(f"{options.source} is a {source.kind}, which needs no import")
    about = source.describe()
    tokenizer = tokenizer_text(options.tokenizer, source)
    body = source.ternary
    description = Description(
        about["model"],
        about["model_arguments"],
        about["quantizer"] if isinstance(source, Gguf) else about["quantizer"]["name"],
        include=body or ["*"],
        exclude=in_floats(body),
        preprocessing={"imported": source.kind, **({} if tokenizer is None else {"tokenizer": tokenizer})},
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with told(options.source):
        header, tensors = imported(source, description, body)
        write_packed(options.out, header, tensors)
    header, tensors = read_packed(options.out)
    check_fits(description, header, tensors)  # as everybody does who loads it
    weights = sum(tensor.numel() for tensor in tensors.values() if tensor.is_floating_point())
    rows = {
        "model": f"decoder, {amount(weights)} floats, {counted(len(body), 'layer')} of codes",
        "tokenizer": "none: texts cannot be written"
        if tokenizer is None
        else "bytes" * (tokenizer == "bytes"),
        "file": f"{path_text(options.out)} ({size(options.out.stat().st_size)})",
    }
    rows = {name: text for name, text in rows.items() if text}
    if tokenizer is not None:
        rows["use"] = f'python -m bitexp generate {path_text(options.out)} --prompt "def "'
    Report().rows(f"{options.source}, a {source.kind}", rows)


def imported(
    source: Gguf | Transformers, description: Description, body: list[str]
) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
    """The header of the packed file, and its tensors, of which none is made before it is asked for.

    Raises:
        ValueError: the source is not what its header says.
    """
    from bitexp.deploy.blank import without_weights
    from bitexp.deploy.frozen import FrozenLayer, Packing, become_frozen, blank_twin
    from bitexp.deploy.packed_file import header_of, owner_names
    from bitexp.deploy.tensor_writer import Made
    from bitexp.kernels import as_kernel
    from bitexp.quant.layers import quantized_layers

    with without_weights():
        model = description.build()
        layers = quantized_layers(model)
        kernel = as_kernel("reference")
        twins = {
            name: blank_twin(layer, Packing.of("auto", layer.spec), kernel) for name, layer in layers.items()
        }
    become_frozen(layers, twins)

    def codes(name: str) -> Tensor:
        layer = model.get_submodule(name)
        assert isinstance(layer, FrozenLayer)
        return layer.packing.layout.pack(source.codes(name)[0])

    @cache
    def scale(name: str) -> Tensor:
        return source.codes(name)[1]

    own: dict[str, Callable[[str], Tensor]] = {"packed": codes, "scale": scale}
    makers: dict[str, Callable[[], Tensor]] = {}
    for name in set(owner_names(model).values()):
        owner, _, kind = name.rpartition(".")
        make = own.get(kind) if owner in twins else None
        makers[name] = partial(source.stored, name) if make is None else partial(make, owner)
    return header_of(model, description, body or None), Made(makers)


def tokenizer_text(chosen: str | None, source: Any) -> str | None:
    """The tokenizer as a packed file has it.

    Raises:
        UserError: there is none where one was named.
    """
    from bitexp.data.text.tokenizers import read_tokenizer
    from bitexp.deploy.exporters.tokenizer_files import BYTES, bytes_json

    if chosen == BYTES:
        return BYTES
    if chosen is not None:
        return read_tokenizer(Path(chosen)).to_json()
    found: str | None = source.tokenizer
    if found not in (None, BYTES) and json.loads(found) == bytes_json():
        return BYTES
    return found


def main(words: Sequence[str]) -> int:
    """`python -m bitexp import`."""
    return run_program("import", __doc__, add_arguments, run, words)
