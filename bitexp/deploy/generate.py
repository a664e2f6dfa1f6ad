"""Text from a trained language model, streamed as it comes.

    python -m bitexp generate outputs/lm_ternary --prompt "def "
    python -m bitexp generate outputs/lm_ternary/ID --prompt "import " --temperature 0.8 --top-p 0.95
    python -m bitexp generate outputs/lm_ternary --prompt "def " --prompt "class "
    python -m bitexp generate outputs/lm_full --bytes 400000        the stack of a run, cut to a size
    python -m bitexp generate outputs/lm_full/ID --delta FILE       with a delta on it

Several prompts are continued together, and their texts come when all are done. The text goes to stdout;
how fast it came, to stderr.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from bitexp.common.console import Report, write
from bitexp.common.errors import UserError
from bitexp.common.format import counted
from bitexp.common.program import positive, run_program

T = TypeVar("T")

WEIGHTS = ("packed", "last", "best")
"""Where weights may come from: the packed file, or the checkpoint of that name."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.add_argument(
        "run", type=Path, help="a run's folder, a folder of runs (the last one), a packed file"
    )
    parser.add_argument(
        "--prompt", action="append", help="the text to go on from (default: a new document); again for more"
    )
    parser.add_argument("--tokens", type=int, default=256, help="how many at most (default: 256)")
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="0 (default): always the most likely token"
    )
    parser.add_argument("--top-k", type=int, help="sample from the K most likely tokens")
    parser.add_argument(
        "--top-p", type=float, help="sample from the most likely tokens that together have this probability"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    parser.add_argument("--weights", choices=WEIGHTS, default="packed", help="default: packed")
    parser.add_argument("--bytes", type=int, help="of the run's stack (python -m bitexp stack) at most")
    parser.add_argument("--delta", type=Path, help="what was fine-tuned (python -m bitexp delta)")
    parser.add_argument("--kernel", default="auto", help="what multiplies packed codes (default: auto)")
    parser.add_argument("--threads", type=positive, default=1)


def run(options: argparse.Namespace) -> None:
    """Writes the text to stdout, and what it took to stderr.

    Raises:
        UserError: no such run, no language model, or a number out of its range.
    """
    import torch

    from bitexp.data.text.tokenizers import load_tokenizer
    from bitexp.deploy.compiled import CompiledDecoder
    from bitexp.deploy.forms.load import load_stack, load_with_delta
    from bitexp.deploy.load import find_run, load_run
    from bitexp.deploy.tape import CannotCompileError
    from bitexp.kernels import choose_kernel
    from bitexp.models.decoder import Decoder
    from bitexp.models.generation import Sampling, Writer, generate, generate_together

    torch.set_num_threads(options.threads)
    try:
        sampling = Sampling(options.temperature, options.top_k, options.top_p, options.seed)
        kernel, kernel_name, _ = choose_kernel(options.kernel, "cpu")
    except ValueError as error:
        message = str(error).replace("top_", "--top-").replace("temperature=", "--temperature=")
        raise UserError(message.replace("seed=", "--seed=")) from None
    if options.tokens < 1:
        raise UserError(f"--tokens={options.tokens} must be at least 1")
    path = find_run(options.run)
    if (options.bytes is not None) + (options.delta is not None) + (options.weights != "packed") > 1:
        raise UserError("--bytes, --delta and --weights each say which weights: only one of them goes")
    if options.bytes is not None:
        model, preprocessing = load_stack(path, options.bytes, kernel)
    elif options.delta is not None:
        model, preprocessing = load_with_delta(path, options.delta, kernel)
    else:
        model, preprocessing = load_run(path, options.weights, kernel)
    if not isinstance(model, Decoder) or "tokenizer" not in preprocessing:
        raise UserError(f"{path} is not a language model, so it cannot generate text")
    tokenizer = load_tokenizer(preprocessing["tokenizer"], path)
    prompts = options.prompt or [""]
    ids = [[tokenizer.end, *found.tolist()] for found in tokenizer.encode(prompts)]
    if (largest := max(map(max, ids))) >= model.embed.num_embeddings:
        raise UserError(
            f"the tokenizer of {path} gives the id {largest}, and its model has {model.embed.num_embeddings} "
            "ids: one of them is of another model; import it anew with --tokenizer"
        )
    report = Report(stderr=True)
    writer: Writer = model
    if options.weights == "packed" and kernel_name == "cpu":
        try:
            writer = CompiledDecoder(model, len(ids))
        except CannotCompileError as error:
            report.line(f"tokens are computed layer by layer: {error}")
    if len(prompts) == 1:
        stream: Counted[Any] = Counted(itertools.islice(generate(writer, ids[0], sampling), options.tokens))
        write(options.prompt[0] if options.prompt else "")
        for piece in tokenizer.stream(stream):
            write(piece)
        write("\n")
    else:
        together = generate_together(writer, ids, sampling, tokenizer.end)
        stream = Counted(itertools.islice(together, options.tokens), len(ids))
        for prompt, text in zip(prompts, zip(*stream, strict=True), strict=True):
            tokens = itertools.takewhile(lambda token: token is not None, text)
            write("".join([prompt, *tokenizer.stream(tokens), "\n"]))
    speed = f"{counted(stream.count, 'token')}, {stream.rate:,.0f} per second after the first"
    report.line(f"{speed}; {options.weights} weights, kernel {kernel_name}, {path}")


class Counted(Generic[T]):
    """Passes tokens of texts on, counts them and takes their time; the first, after the prompts, apart."""

    def __init__(self, tokens: Iterator[T], texts: int = 1) -> None:
        self.tokens, self.texts, self.count = tokens, texts, 0
        self.began = self.seconds = 0.0

    def __iter__(self) -> Iterator[T]:
        for token in self.tokens:
            now = time.monotonic()
            self.began = self.began or now
            self.seconds = now - self.began
            self.count += sum(t is not None for t in token) if isinstance(token, list) else 1
            yield token

    @property
    def rate(self) -> float:
        """Tokens per second after the first of each text."""
        return (self.count - self.texts) / self.seconds if self.seconds else 0.0


def main(words: Sequence[str]) -> int:
    """`python -m bitexp generate`."""
    return run_program("generate", __doc__, add_arguments, run, words)
