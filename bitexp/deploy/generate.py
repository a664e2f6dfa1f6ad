"""Text from a trained language model, streamed as it comes.

    python -m bitexp generate outputs/lm_ternary --prompt "def "
    python -m bitexp generate outputs/lm_ternary/ID --prompt "import " --temperature 0.8 --top-p 0.95

The text goes to stdout; how fast it came, to stderr.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bitexp.common.console import Report, write
from bitexp.common.errors import UserError
from bitexp.common.program import run_program

WEIGHTS = ("packed", "last", "best")
"""Where weights may come from: the packed file, or the checkpoint of that name."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.add_argument(
        "run", type=Path, help="a run's folder, a folder of runs (the last one), a packed file"
    )
    parser.add_argument("--prompt", default="", help="the text to go on from (default: a new document)")
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
    parser.add_argument("--kernel", default="auto", help="what multiplies packed codes (default: auto)")
    parser.add_argument("--threads", type=int, default=1)


def run(options: argparse.Namespace) -> None:
    """Writes the text to stdout, and what it took to stderr.

    Raises:
        UserError: no such run, no language model, or a number out of its range.
    """
    import torch

    from bitexp.data.text.tokenizers import load_tokenizer
    from bitexp.deploy.load import find_run, load_run
    from bitexp.kernels import choose_kernel
    from bitexp.models.decoder import Decoder
    from bitexp.models.generation import Sampling, generate

    torch.set_num_threads(max(1, options.threads))
    try:
        sampling = Sampling(options.temperature, options.top_k, options.top_p, options.seed)
        kernel, kernel_name, _ = choose_kernel(options.kernel, "cpu")
    except ValueError as error:
        message = str(error).replace("top_", "--top-").replace("temperature=", "--temperature=")
        raise UserError(message.replace("seed=", "--seed=")) from None
    if options.tokens < 1:
        raise UserError(f"--tokens={options.tokens} must be at least 1")
    path = find_run(options.run)
    model, preprocessing = load_run(path, options.weights, kernel)
    if not isinstance(model, Decoder) or "tokenizer" not in preprocessing:
        raise UserError(f"{path} is not a language model, so it cannot generate text")
    tokenizer = load_tokenizer(preprocessing["tokenizer"], path)
    prompt = [tokenizer.end, *tokenizer.encode([options.prompt])[0].tolist()]
    counted = Counted(itertools.islice(generate(model, prompt, sampling), options.tokens))
    write(options.prompt)
    for piece in tokenizer.stream(counted):
        write(piece)
    write("\n")
    speed = f"{counted.count:,} tokens, {counted.rate:,.0f} per second after the first"
    Report(stderr=True).line(f"{speed}; {options.weights} weights, kernel {kernel_name}, {path}")


class Counted:
    """Passes tokens on, counts them and takes their time; the first, which reads the prompt, apart."""

    def __init__(self, tokens: Iterator[int]) -> None:
        self.tokens, self.count = tokens, 0
        self.began = self.seconds = 0.0

    def __iter__(self) -> Iterator[int]:
        for token in self.tokens:
            now = time.monotonic()
            self.began = self.began or now
            self.seconds = now - self.began
            self.count += 1
            yield token

    @property
    def rate(self) -> float:
        """Tokens per second after the first."""
        return (self.count - 1) / self.seconds if self.seconds else 0.0


def main(words: Sequence[str]) -> int:
    """`python -m bitexp generate`."""
    return run_program("generate", __doc__, add_arguments, run, words)
