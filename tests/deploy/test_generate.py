"""`python -m bitexp generate`: what it writes where, its exit codes, and its words for what cannot be."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bitexp.__main__ import main
from bitexp.common.console import Report
from bitexp.common.files import read_json, write_json
from bitexp.data.text.tokenizers import load_tokenizer
from bitexp.deploy.load import load_run
from bitexp.kernels import choose_kernel
from bitexp.models.generation import Sampling, generate

if TYPE_CHECKING:
    from bitexp.run.road import Outcome


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, compose_config: Callable[..., dict[str, Any]]
) -> Callable[..., Path]:
    """Folders of tiny language models by their overrides, each trained once; not to be changed."""
    from bitexp.run.road import run

    root = tmp_path_factory.mktemp("language")
    (root / "text.txt").write_text("".join(f"{n} times {n % 7} is {n * (n % 7)}: ×.\n" for n in range(200)))
    made: dict[tuple[str, ...], Path] = {}

    def make(*overrides: str) -> Path:
        if overrides not in made:
            words = [
                "+experiment=lm_ternary",
                "data=text",
                f"data.files=[{root}/text.txt]",
                "data.context=32",
                "model.dim=32",
                "model.depth=1",
                "trainer.epochs=1",
                "trainer.train_batches=30",
                "trainer.eval_batches=1",
                "logger=csv",
                "callbacks.progress=none",
                *overrides,
            ]
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("BITEXP_OUTPUTS", str(root / "outputs"))
                made[overrides] = run(compose_config(*words), words, Report(quiet=True)).folder
        return made[overrides]

    return make


@pytest.fixture
def folder(trained: Callable[..., Path], tmp_path: Path) -> Path:
    """A copy of a trained run, to be spoiled."""
    return shutil.copytree(trained(), tmp_path / "runs" / "copy")


@pytest.fixture
def call(in_process: Any) -> Any:
    """`python -m bitexp generate WORDS...` in this process."""
    call = in_process(main, "bitexp")
    return lambda *words: call("generate", *words)


def text_of(folder: Path, prompt: str, count: int, sampling: Sampling, weights: str = "last") -> str:
    """What the run's checkpoint goes on with."""
    model, how = load_run(folder, weights, choose_kernel("reference", "cpu")[0])
    tokenizer = load_tokenizer(how["tokenizer"], folder)
    assert type(model).__name__ == "Decoder"
    ids = [tokenizer.end, *tokenizer.encode([prompt])[0].tolist()]
    made: Any = generate(model, ids, sampling)  # type: ignore[arg-type]
    return "".join(tokenizer.stream(itertools.islice(made, count)))


@pytest.mark.parametrize(
    ("words", "sampling"),
    [
        ((), Sampling(0.0)),
        (("--temperature", 1.2, "--seed", 5), Sampling(1.2, seed=5)),
        (("--temperature", 0.9, "--top-k", 40, "--top-p", 0.95), Sampling(0.9, 40, 0.95)),
    ],
)
def test_text_goes_to_stdout_and_its_speed_to_stderr(
    trained: Callable[..., Path],
    call: Callable[..., Any],
    words: tuple[object, ...],
    sampling: Sampling,
) -> None:
    prompt, folder = "3 × ", trained()
    said = call(folder, "--prompt", prompt, "--tokens", 50, *words)
    text = text_of(folder, prompt, 50, sampling)
    assert said.code == 0
    assert said.out == f"{prompt}{text}\n"
    assert len(text) > 5
    line = rf"\d+ tokens, [\d,]+ per second after the first; packed weights, kernel \w+, {folder}\n"
    assert re.fullmatch(line, said.err)


def test_packed_and_latent_weights_and_every_way_to_name_a_run_give_the_same_text(
    trained: Callable[..., Path], call: Callable[..., Any]
) -> None:
    folder = trained()
    words = ("--tokens", 40, "--temperature", 1, "--prompt", "12")
    outs = {
        call(folder, *words).out,
        call(folder, *words, "--weights", "last").out,
        call(folder, *words, "--kernel", "reference").out,
        call(folder / "packed.safetensors", *words).out,
        call(folder.parent, *words).out,
    }
    assert len(outs) == 1
    assert call(folder, *words, "--seed", 1).out not in outs


def test_of_a_folder_of_runs_the_last_one_speaks(folder: Path, call: Callable[..., Any]) -> None:
    for name, ended in (("early", "2020-01-01T00:00:00+00:00"), ("late", "2100-01-01T00:00:00+00:00")):
        shutil.copytree(folder, folder.parent / name)
        result = read_json(folder / "result.json")
        write_json(folder.parent / name / "result.json", {**result, "ended": ended})
    assert call(folder.parent, "--tokens", 3).err.endswith(f"{folder.parent / 'late'}\n")


def test_without_a_prompt_a_new_document_begins(
    trained: Callable[..., Path], call: Callable[..., Any]
) -> None:
    words = ("--tokens", 20, "--temperature", 1)
    assert call(trained(), *words).out == text_of(trained(), "", 20, Sampling(1.0)) + "\n"


def test_several_prompts_are_continued_together_each_with_a_seed_of_its_own(
    trained: Callable[..., Path], call: Callable[..., Any]
) -> None:
    pytest.importorskip("numba")
    folder, prompts = trained(), ["3 × ", "", "12"]
    words = [word for prompt in prompts for word in ("--prompt", prompt)]
    for weights, kernel in (("packed", "cpu"), ("packed", "reference"), ("last", "auto")):
        given = ("--weights", weights, "--kernel", kernel, "--temperature", 1.1, "--tokens", 30)
        said = call(folder, *words, *given)
        texts = [text_of(folder, p, 30, Sampling(1.1, seed=seed)) for seed, p in enumerate(prompts)]
        assert said.out == "".join(f"{p}{text}\n" for p, text in zip(prompts, texts, strict=True))
        assert re.match(r"\d+ tokens, [\d,]+ per second after the first; ", said.err)


def test_several_texts_end_each_with_its_document(
    trained: Callable[..., Path], call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[list[int | None]] = [[ord("a"), ord("x")], [0, ord("y")], [None, ord("z")]]
    monkeypatch.setattr("bitexp.models.generation.generate_together", lambda *_: iter(steps))
    said = call(trained(), "--prompt", "1", "--prompt", "2")
    assert (said.code, said.out) == (0, "1a\n2xyz\n")
    assert said.err.startswith("5 tokens, ")


def test_a_network_that_cannot_be_compiled_says_so_once_and_writes_all_the_same(
    trained: Callable[..., Path], call: Callable[..., Any]
) -> None:
    pytest.importorskip("numba")
    folder = trained("quantizer=ternary_int4")
    said = call(folder, "--prompt", "3 ", "--tokens", 20, "--kernel", "cpu")
    assert (said.code, said.out) == (0, f"3 {text_of(folder, '3 ', 20, Sampling(0.0))}\n")
    first, second = said.err.splitlines()
    assert first == (
        "tokens are computed layer by layer: the kernel does not make the activation codes of blocks.0.attn.q"
    )
    assert second.startswith("20 tokens, ")


def test_byte_pairs_are_streamed_as_whole_characters(
    trained: Callable[..., Path], call: Callable[..., Any]
) -> None:
    pytest.importorskip("tokenizers")
    folder = trained("data.tokenizer=bpe", "data.vocabulary=300")
    said = call(folder, "--prompt", "5 times ", "--tokens", 60, "--temperature", 0.7)
    assert (said.code, said.err.count("\n")) == (0, 1)
    assert said.out == f"5 times {text_of(folder, '5 times ', 60, Sampling(0.7))}\n"


@pytest.mark.parametrize("overrides", [(), ("data.tokenizer=bpe", "data.vocabulary=300")])
def test_the_word_for_the_end_is_text_in_a_prompt(
    trained: Callable[..., Path],
    call: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    overrides: tuple[str, ...],
) -> None:
    prompts: list[list[int]] = []
    monkeypatch.setattr(
        "bitexp.models.generation.generate", lambda model, ids, *_: iter(prompts.append(ids) or [])
    )
    said = call(trained(*overrides), "--prompt", "a<|endoftext|>b")
    assert (said.code, said.out) == (0, "a<|endoftext|>b\n")
    assert len(prompts[0]) > 4
    assert prompts[0].count(prompts[0][0]) == 1  # the end of the text before


def test_text_comes_while_it_is_made_and_stays_when_it_is_stopped(
    trained: Callable[..., Path], call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> Iterator[int]:
        yield from b"abc"
        raise KeyboardInterrupt

    monkeypatch.setattr("bitexp.models.generation.generate", interrupted)
    said = call(trained(), "--prompt", "12 ")
    assert said.code == 130
    assert said.out.startswith("12 abc")
    assert "Traceback" not in said.err


def test_the_end_of_a_document_ends_the_text(
    trained: Callable[..., Path], call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitexp.models.generation.generate", lambda *_: itertools.cycle(b"one\0two"))
    said = call(trained(), "--tokens", 100)
    assert (said.code, said.out) == (0, "one\n")
    assert said.err.startswith("4 tokens, ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--kernel", "int9"), r"unknown kernel 'int9'\. Did you mean 'int8'\?"),
        (("--top-k", 5), "--temperature=0 takes the most likely token, so --top-k and --top-p would"),
        (("--temperature", 1, "--top-k", 0), "--top-k=0 must be at least 1"),
        (("--temperature", 1, "--top-p", 1.5), r"--top-p=1\.5 must be above 0 and at most 1"),
        (("--temperature", -1), r"--temperature=-1\.0 must be 0 \(greedy\) or above"),
        (("--seed", -1), "--seed=-1 must be at least 0"),
        (("--tokens", 0), "--tokens=0 must be at least 1"),
        (("--threads", 0), "argument --threads: '0' must be a whole number of at least 1"),
        (("--tokens", "many"), "argument --tokens: invalid int value: 'many'"),
        (("--weights", "first"), "argument --weights: invalid choice: 'first'"),
        (("--weights", "best"), r"best\.ckpt cannot be used: it is missing"),
    ],
)
def test_words_that_cannot_be_are_refused_with_code_2(
    trained: Callable[..., Path], call: Callable[..., Any], words: tuple[object, ...], message: str
) -> None:
    said = call(trained(), *words)
    assert (said.code, said.out) == (2, "")
    assert re.search(message, said.err)
    assert "Traceback" not in said.err


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("spoil", "words", "message"),
    [
        (shutil.rmtree, (), "copy is no run and holds no finished one"),
        (lambda f: truncate(f / "packed.safetensors"), (), r"packed\.safetensors is damaged"),
        (
            lambda f: (f / "packed.safetensors").unlink(),
            (),
            "the command of the run makes it again; --weights last takes its last checkpoint",
        ),
        (
            lambda f: truncate(f / "checkpoints" / "last.ckpt"),
            ("--weights", "last"),
            r"last\.ckpt cannot be used",
        ),
        (
            lambda f: (f / "model.json").unlink(),
            ("--weights", "last"),
            r"model\.json does not describe the model",
        ),
    ],
)
def test_files_that_cannot_be_used_are_told_with_code_2(
    folder: Path,
    call: Callable[..., Any],
    spoil: Callable[[Path], object],
    words: tuple[object, ...],
    message: str,
) -> None:
    spoil(folder)
    said = call(folder, *words)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("bitexp: ")
    assert re.search(message, said.err)


def test_an_unfinished_run_speaks_from_its_last_checkpoint(folder: Path, call: Callable[..., Any]) -> None:
    for name in ("packed.safetensors", "result.json"):
        (folder / name).unlink()
    said = call(folder, "--weights", "last", "--tokens", 30, "--prompt", "7 ")
    assert (said.code, said.out) == (0, f"7 {text_of(folder, '7 ', 30, Sampling(0.0))}\n")
    assert "last weights, kernel " in said.err


def test_a_packed_file_has_no_checkpoint(trained: Callable[..., Path], call: Callable[..., Any]) -> None:
    said = call(trained() / "packed.safetensors", "--weights", "last")
    assert (said.code, said.out) == (2, "")
    assert "is a packed file: it has no checkpoint 'last'" in said.err


def test_a_run_on_images_has_no_text(train: Callable[..., Outcome], call: Callable[..., Any]) -> None:
    folder = train().folder
    for words in ((), ("--weights", "last")):
        said = call(folder, *words)
        assert (said.code, said.out) == (2, "")
        assert f"{folder} is not a language model, so it cannot generate text" in said.err
