"""C99 without a dependency or an allocation, for processors without a system: one file, one header, one test.

Weights are constants in as many bits as in a packed file, or in whole pairs where speed counts; activations
are int8, sums are integers. The norms of quantized layers add in bitexp's order, so that their codes and
sums are the same to the bit; softmax, SiLU, GELU and layers in full precision differ in their last bits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from bitexp.common.errors import UserError
from bitexp.common.files import write_atomic
from bitexp.common.format import size
from bitexp.deploy.exporters.c_pixels import Pixels
from bitexp.deploy.exporters.c_tape import CTape, check_layer
from bitexp.deploy.exporters.c_values import Value, array_text, number_text
from bitexp.deploy.exporters.exporter import (
    EXPORTERS,
    Exported,
    Exporter,
    InexpressibleError,
    Packed,
    scale_dims,
)
from bitexp.deploy.frozen import FrozenLayer
from bitexp.models.decoder import Decoder
from bitexp.quant.layers import QuantizedLayer

EXAMPLES = 10
MARGIN = 1e-3
"""Where the two best logits are nearer, another may win."""


@EXPORTERS.register("c")
class CCode(Exporter):
    """model.c, model.h and test.c.

    Args:
        optimize: `size` stores codes in the fewest bits (three levels: 1.6), `speed` in those that are
            unpacked fastest (2).
        input: `pixels` takes an image in bytes and normalizes them while they are read, so that there is no
            copy of it in floats; `floats` takes what the network sees. `auto`: pixels where the packed file
            says how they are normalized.
        license: for the README.
    """

    engine: ClassVar[str] = "c"

    def __init__(
        self,
        *,
        optimize: Literal["size", "speed"] = "size",
        input: Literal["auto", "pixels", "floats"] = "auto",
        license: str = "unknown",
    ) -> None:
        self.optimize, self.input, self.license = optimize, input, license

    def check(self, model: nn.Module, tokenizer: str | None = None) -> None:
        if isinstance(model, Decoder) and model.qk_norm:
            raise InexpressibleError("norms of single heads (model.qk_norm) have no C code")
        if getattr(model, "record", None) is None:
            raise InexpressibleError(
                f"a {type(model).__name__} has no C code; mlp, cnn, vit and decoder have"
            )
        for name, layer in model.named_modules():
            quantized = isinstance(layer, FrozenLayer | QuantizedLayer)
            if quantized and layer.spec.weights is not None:
                check_layer(name, layer)
                if scale_dims(layer) == 2:
                    raise InexpressibleError(
                        f"{name} has a scale for each group, and C code one for a row; train with "
                        "quantizer.weights.granularity=channel"
                    )

    def write(self, packed: Packed, folder: Path) -> Exported:
        model = packed.model
        names = {id(m): name for name, m in model.named_modules()}
        tape = CTape(names, self.optimize == "speed", self.takes_pixels(packed))
        record: Any = model
        result = record.record(tape)
        program = Program(tape, result, packed)
        write_atomic(folder / "model.h", program.header().encode())
        write_atomic(folder / "model.c", program.source().encode())
        write_atomic(folder / "test.c", program.test(*program.examples()).encode())
        return Exported(
            [
                "Codes, scales, the norms of quantized layers and all integer sums are the same to the bit, "
                "where the compiler does not fuse multiplications and additions (`-std=c99`, or "
                "`-ffp-contract=off`).",
                *(["Images are normalized as in training, to the bit."] if program.pixels else []),
                "Layers in full precision, softmax, SiLU and GELU differ in their last bits.",
                f"{size(program.flash)} of constants, {size(program.ram)} of static memory beside the input, "
                "no heap.",
            ],
            USAGE.format(call=program.example, input=program.input),
            {"license": self.license, "tags": ["bitexp", "quantization", "tinyml"]},
            "bash",
        )

    def takes_pixels(self, packed: Packed) -> bool:
        """Whether the input is an image in bytes.

        Raises:
            UserError: another input was asked for than there can be.
        """
        text = isinstance(packed.model, Decoder)
        known = not text and Pixels.of(packed.preprocessing) is not None
        if self.input != "auto" and (text or (self.input == "pixels" and not known)):
            why = "it reads tokens" if text else "its packed file does not say how they are normalized"
            raise UserError(f"input={self.input} is not for {packed.name}: {why}; leave it out")
        return known and self.input != "floats"


USAGE = """\
gcc -std=c99 -O2 -Wall -Wextra -Werror model.c test.c -lm -o test && ./test
# in a program of your own: #include "model.h", then {call}
# input: {input}
"""


class Program:
    """The texts of the files."""

    def __init__(self, tape: CTape, result: Value, packed: Packed) -> None:
        self.tape, self.result, self.packed = tape, result, packed
        self.floats = tape.places(result)
        self.scratch = {"memory": ("float", self.floats), "q": ("int8_t", tape.codes)}
        self.scratch |= {"patch": ("int8_t", tape.patch), "weights": ("float", tape.weights)}
        self.scratch |= {name: ("float", count) for name, count in tape.state}
        self.pixels = None if tape.token else Pixels.of(packed.preprocessing)

    @property
    def ram(self) -> int:
        """Bytes of static memory."""
        return sum(count * (4 if kind == "float" else 1) for kind, count in self.scratch.values())

    @property
    def flash(self) -> int:
        """Bytes of constants."""
        sizes = {"float": 4, "uint16_t": 2, "conv_shape": 60}
        found = (re.match(r"static const (\w+) \w+(?:\[(\d+)\])?", text) for text in self.tape.constants)
        return sum(sizes.get(match[1], 1) * int(match[2] or 1) for match in found if match)

    @property
    def example(self) -> str:
        """How it is called."""
        return "model_step(token, logits)" if self.tape.token else "model_run(input, logits)"

    @property
    def input(self) -> str:
        """What it takes, in words."""
        if self.tape.token:
            return "a token after the other, from 0; model_reset() begins another text"
        source = self.tape.source
        assert source is not None
        if self.pixels is None:
            return f"{source.size} floats"
        if self.tape.pixels:
            return f"{self.pixels.order}; they are normalized while they are read"
        return f"{source.size} floats, which model_prepare(pixels, input) makes of {self.pixels.order}"

    def header(self) -> str:
        """model.h."""
        lines = [f"/* {self.packed.name}, written by bitexp. */", "#ifndef MODEL_H", "#define MODEL_H", ""]
        lines += ["#include <stdint.h>", "", f"#define MODEL_OUTPUTS {self.result.size}"]
        if self.tape.token:
            model = self.packed.model
            assert isinstance(model, Decoder)
            lines += [
                f"#define MODEL_CONTEXT {model.context}",
                "",
                "/* Forgets the text. */",
                "void model_reset(void);",
                "/* Logits after one more token; returns -1 where there is no room, or no such token. */",
                "int model_step(int token, float *logits);",
            ]
        else:
            assert self.tape.source is not None
            if self.pixels is not None:
                lines += ["", "/* A pixel is seen as (byte / MODEL_WHITE - MODEL_MEAN) / MODEL_DEVIATION. */"]
                lines += self.pixels.declared()
            lines += [
                "",
                f"/* The input: {self.input}. */",
                f"#define MODEL_INPUTS {self.tape.source.size}",
                f"typedef {'uint8_t' if self.tape.pixels else 'float'} model_input;",
                "",
                "/* Logits of the classes. */",
                "void model_run(const model_input *input, float *logits);",
                "/* The class. */",
                "int model_predict(const model_input *input);",
            ]
            if self.pixels is not None and not self.tape.pixels:
                lines += [
                    "/* The input that pixels make. */",
                    "void model_prepare(const uint8_t *pixels, float *input);",
                ]
        return "\n".join([*lines, "", "#endif", ""])

    def source(self) -> str:
        """model.c."""
        parts = [
            f"/* {self.packed.name}, written by bitexp. Compile with -std=c99 or -ffp-contract=off. */",
            '#include "model.h"\n\n#include <math.h>\n#include <stddef.h>\n#include <stdint.h>',
            "typedef int32_t (*row_sum)(const int8_t *q, const uint8_t *w, int n, int low, int stride);",
        ]
        if not any(function.startswith("row_") for function in self.tape.functions):
            parts.pop()
        if "conv_shape" in self.tape.functions:
            parts.append(CONV_SHAPE)
        if self.pixels is not None:
            parts.append(self.pixels.function)
        parts += functions(self.tape.functions)
        parts += self.tape.constants
        parts += [f"static {kind} {name}[{count}];" for name, (kind, count) in self.scratch.items() if count]
        return "\n\n".join([*parts, *(self.step() if self.tape.token else self.run())]) + "\n"

    def calls(self) -> Iterable[str]:
        """The body of the function."""
        for call in self.tape.calls:
            words = ", ".join(self.word(argument) for argument in [call.out, *call.arguments])
            yield f"    {call.function}({words});"

    def word(self, argument: Any) -> str:
        """An argument in C."""
        if not isinstance(argument, Value):
            return str(argument)
        if argument is self.result:
            return "logits"
        return "input" if argument is self.tape.source else f"memory + {argument.place}"

    def run(self) -> list[str]:
        """The functions of a classifier."""
        found = [
            "\n".join(["void model_run(const model_input *input, float *logits) {", *self.calls(), "}"]),
            "int model_predict(const model_input *input) {\n    float logits[MODEL_OUTPUTS];\n"
            "    int best = 0, i;\n"
            "    model_run(input, logits);\n    for (i = 1; i < MODEL_OUTPUTS; i++)\n"
            "        if (logits[i] > logits[best]) best = i;\n    return best;\n}",
        ]
        if self.pixels is not None and not self.tape.pixels:
            found.append(
                "void model_prepare(const uint8_t *pixels, float *input) {\n    int i;\n"
                "    for (i = 0; i < MODEL_INPUTS; i++) input[i] = pixel(pixels, i);\n}"
            )
        return found

    def step(self) -> list[str]:
        """The functions of a decoder."""
        return [
            "static int place;",
            "void model_reset(void) { place = 0; }",
            "\n".join(
                [
                    "int model_step(int token, float *logits) {",
                    f"    if (place >= MODEL_CONTEXT || token < 0 || token >= {self.vocabulary}) return -1;",
                    *self.calls(),
                    "    place++;",
                    "    return 0;",
                    "}",
                ]
            ),
        ]

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        model = self.packed.model
        assert isinstance(model, Decoder)
        return model.embed.num_embeddings

    def test(self, inputs: Tensor, outputs: Tensor) -> str:
        """test.c: examples with answers; it ends with 1 where the best is another though it was clear."""
        token = self.tape.token
        kind = "int" if token else "model_input"
        texts = [number_text(v) if inputs.is_floating_point() else str(v) for v in inputs.flatten().tolist()]
        answers = [number_text(v) for v in outputs.flatten().tolist()]
        call = (
            "if (model_step(inputs[e], logits)) return 1;"
            if token
            else "model_run(inputs + e * MODEL_INPUTS, logits);"
        )
        return "\n".join(
            [
                "/* Examples (noise) with the logits that bitexp has for them. */",
                '#include "model.h"\n\n#include <math.h>\n#include <stdio.h>\n',
                array_text(f"static const {kind} inputs[{len(texts)}]", texts),
                array_text(f"static const float answers[{len(answers)}]", answers),
                TEST.format(count=len(outputs), call=call, margin=number_text(MARGIN)),
            ]
        )

    def examples(self) -> tuple[Tensor, Tensor]:
        """Noise `[examples, ...]`, and what the packed file says to it: logits `[examples, outputs]`."""
        generator, model = torch.Generator().manual_seed(0), self.packed.model
        with torch.no_grad():
            if isinstance(model, Decoder):
                count = min(EXAMPLES, model.context)
                tokens = torch.randint(model.embed.num_embeddings, (1, count), generator=generator)
                return tokens[0], model(tokens)[0].float()
            if self.tape.pixels:
                assert self.pixels is not None
                sizes = (EXAMPLES, *self.pixels.shape)
                bytes = torch.randint(self.pixels.white + 1, sizes, generator=generator)
                return bytes, model(self.pixels.normed(bytes)).float()
            images = torch.randn(EXAMPLES, *self.image_shape(), generator=generator)
            return images, model(images).float()

    def image_shape(self) -> tuple[int, ...]:
        """Of the input."""
        source = self.tape.source
        assert source is not None
        if self.pixels is not None:
            return self.pixels.shape
        return (source.rows, source.height, source.width) if source.height else (1, 1, source.size)


CONV_SHAPE = """\
typedef struct {
    int channels, height, width, outputs, rows, columns, k0, k1, s0, s1, p0, p1, d0, d1, groups;
} conv_shape;"""

TEST = """
int main(void) {{
    float logits[MODEL_OUTPUTS], largest = 0.0f;
    int e, i, wrong = 0;
    for (e = 0; e < {count}; e++) {{
        const float *answer = answers + e * MODEL_OUTPUTS;
        int best = 0, right = 0;
        float second = -1e30f;
        {call}
        for (i = 0; i < MODEL_OUTPUTS; i++) {{
            float apart = fabsf(logits[i] - answer[i]);
            if (apart > largest) largest = apart;
            if (logits[i] > logits[best]) best = i;
            if (answer[i] > answer[right]) right = i;
        }}
        for (i = 0; i < MODEL_OUTPUTS; i++)
            if (i != right && answer[i] > second) second = answer[i];
        if (best != right && answer[right] - second > {margin}) wrong++;
    }}
    printf("%d examples, %d wrong, logits at most %g apart\\n", e, wrong, (double)largest);
    return wrong != 0;
}}
"""


def functions(wanted: Iterable[str]) -> list[str]:
    """The functions of the runtime that are called, and those that they call, in its order."""
    text = (Path(__file__).parent / "c" / "runtime.c").read_text(encoding="utf-8")
    heads = re.findall(r"^/\* == (\w+)(?:: ([\w, ]+))? \*/\n", text, re.MULTILINE)
    bodies = re.split(r"^/\* == .* \*/\n", text, flags=re.MULTILINE)[1:]
    needs = {name: set(filter(None, others.split(", "))) for name, others in heads}
    found = set(wanted) & set(needs)
    while more := set().union(*(needs[name] for name in found)) - found:
        found |= more
    return [body.rstrip() for (name, _), body in zip(heads, bodies, strict=True) if name in found]
