"""`python -m bitexp claims`: from a file of claims to a page, in slices, here and on another machine."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

import bitexp.__main__
from bitexp.claims import make
from bitexp.claims.definition import Sweep
from bitexp.claims.page import tuned
from bitexp.claims.record import known_run, read_record, write_record
from bitexp.common.console import Report
from tests.support.processes import Program
from tests.support.run_folders import WriteRun
from tests.support.training import train

SMALL = ("data=digits", "model=mlp", "model.hidden=[8]", "trainer.epochs=1", "trainer.train_batches=4")
SWEEP: dict[str, Any] = {
    "words": [*SMALL, "name=tiny"],
    "axes": {"quantizer": ["full_norm", "binary"]},
    "tune": {"key": "optimizer.lr", "values": [0.01, 0.03], "seed": 10, "per": []},
    "seeds": 2,
    "seconds": 1,
}
QUESTION: dict[str, Any] = {
    "question": "Is binary as good?",
    "claim": "It is as good.",
    "source": "nobody",
    "analysis": {"name": "difference", "axis": "quantizer", "control": "full_norm", "margin": 0.02},
    "sweep": {"small": SWEEP},
}


@pytest.fixture
def call(in_process: Any) -> Program:
    """`python -m bitexp WORDS...` in this process."""
    program: Program = in_process(bitexp.__main__.main, "bitexp")
    return program


def write_claims(folder: Path, **changes: Any) -> Path:
    """A folder of configs with the claims `mine`; `changes` are of its sweep, or of the question."""
    sweep = {key: changes.pop(key, value) for key, value in SWEEP.items()}
    question = {**QUESTION, "sweep": {"small": sweep}, **changes}
    (folder / "claims").mkdir(parents=True, exist_ok=True)
    content = {"title": "Mine", "about": "A test.", "questions": {"one": question}}
    (folder / "claims" / "mine.yaml").write_text(yaml.safe_dump(content))
    return folder


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """The commands that were launched; their runs are made in this process."""
    commands: list[Sequence[str]] = []

    def launch(words: Sequence[str], further: Sequence[str], config_dir: Path | None) -> int:
        commands.append(words)
        for run in product(words):
            train(*run, *further, "logger=csv", base=())
        return 0

    monkeypatch.setattr(make, "launch", launch)
    return commands


def product(words: Sequence[str]) -> list[list[str]]:
    """The runs of a multirun; lists in brackets are one value."""
    runs: list[list[str]] = [[]]
    for word in words:
        key, _, value = word.partition("=")
        values = [value] if value.startswith("[") else value.split(",")
        runs = [[*run, f"{key}={one}"] for run in runs for one in values]
    return runs


def test_it_makes_what_is_missing_in_slices(
    call: Program, launched: list[Sequence[str]], tmp_path: Path, outputs: Path
) -> None:
    words = [
        "claims",
        "mine",
        "--config-dir",
        write_claims(tmp_path / "conf"),
        "--known",
        tmp_path / "runs.csv",
    ]
    said = call(*words, "--dry-run")
    assert (said.code, launched) == (0, []), said.err
    assert "1 question at scale small; about 6 s for what is missing" in said.out
    assert not (tmp_path / "runs.csv").exists()

    said = call(*words, "--only", "onr")
    assert (said.code, launched) == (2, [])
    assert "--only: unknown question 'onr'. Did you mean 'one'? Known: one" in said.err

    said = call(*words, "--runs", "0")
    assert (said.code, launched) == (0, []), said.err
    assert "one: Not yet run: 0 of 6 runs are finished." in said.out
    assert (outputs / "claims" / "mine" / "index.html").exists()

    said = call(*words, "--runs", "3")
    assert said.code == 0, said.err
    assert launched[0][-3:] == ["quantizer=full_norm", "optimizer.lr=0.01,0.03", "seed=10"]
    assert "one: Not yet run: 3 of 6 runs are finished." in said.out
    assert "3 runs not finished yet: the same command goes on." in said.out

    said = call(*words)
    made = sum(len(product(command)) for command in launched)
    assert (said.code, made) == (0, 6), said.err
    assert "one: The claim " in said.out
    page = (outputs / "claims" / "mine" / "index.html").read_text()
    assert "It is as good." in page
    assert "6 runs, a line each in runs.csv." in page
    assert "python -m bitexp -m data=digits" in page
    assert "4 of 4 runs that are compared kept the margin 0.02 when they began." in page
    known = read_record(tmp_path / "runs.csv")
    assert len(known) == 6
    assert (tmp_path / "runs.csv").read_bytes() == (outputs / "claims" / "mine" / "runs.csv").read_bytes()

    shutil.rmtree(outputs)  # as on another machine
    said = call(*words)
    assert (said.code, sum(len(product(command)) for command in launched)) == (0, 6), said.err
    assert "one: The claim " in said.out

    lines = (tmp_path / "runs.csv").read_text().splitlines(keepends=True)
    changed = [line.replace(next(iter(known)), "0123456789", 1) for line in lines]
    (tmp_path / "runs.csv").write_text("".join(changed))
    said = call(*words, "--dry-run")
    text = " ".join(said.out.split())
    assert "1 run of other code, data or settings answers none of these questions" in text


def test_a_setting_that_diverges_is_not_waited_for(
    call: Program, launched: list[Sequence[str]], tmp_path: Path, outputs: Path
) -> None:
    """Tuning passes it over; where a run that is compared diverges there is no verdict, and nothing to do."""
    tune = {**SWEEP["tune"], "values": [0.01, 1e30]}
    words = ["claims", "mine", "--known", tmp_path / "runs.csv", "--config-dir"]
    said = call(*words, write_claims(tmp_path / "conf", tune=tune))
    assert said.code == 0, said.err
    assert "one: The claim " in said.out
    assert "1 run diverged" in said.out
    assert "the same command goes on" not in said.out
    made = len(launched)
    said = call(
        *words, write_claims(tmp_path / "lost", words=[*SWEEP["words"], "optimizer.lr=1e30"], tune=None)
    )
    assert "one: No verdict: 0 of 4 runs are finished, 4 diverged." in said.out
    assert len(launched) == made + 1
    shutil.rmtree(outputs)  # as on another machine: the table says what is in vain
    said = call(*words, tmp_path / "lost")
    assert "one: No verdict: 0 of 4 runs are finished, 4 diverged." in said.out
    assert len(launched) == made + 1


def test_lines_that_others_add_meanwhile_stay(
    call: Program, monkeypatch: pytest.MonkeyPatch, write_run: WriteRun, tmp_path: Path, outputs: Path
) -> None:
    """As another machine does, or `git pull`: the table is read at first, and written for hours."""
    file, made_elsewhere = tmp_path / "runs.csv", known_run(write_run("binary", 3, 0.75))
    assert made_elsewhere is not None
    shutil.rmtree(outputs)

    def launch(*_: Any) -> int:
        write_record(file, [made_elsewhere])
        return 0

    monkeypatch.setattr(make, "launch", launch)
    said = call(
        "claims", "mine", "--config-dir", write_claims(tmp_path / "conf"), "--known", file, "--runs", "1"
    )
    assert said.code == 0, said.err
    assert read_record(file) == {made_elsewhere.id: made_elsewhere}


def test_runs_of_the_questions_that_are_named_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(
        make, "piece", lambda parts, *_: (asked.append([p.key for p in parts]), (None, []))[1]
    )
    plan: Any = SimpleNamespace(parts=[SimpleNamespace(key=key) for key in ("one", "two", "three")])
    for only in (None, ["three", "one"]):
        make.make(plan, [], Report(quiet=True), lambda: None, only=only)
    assert asked == [["one", "two", "three"], ["one", "three"]]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seeds": 1}, "one seed has no spread"),
        (
            {"analysis": {"name": "difference", "axis": "quantizer", "margin": 0.1}},
            "'one.analysis.control' is missing",
        ),
        (
            {"analysis": {"name": "difference", "axis": "quantizer", "control": "full_norm"}},
            "margin' is missing",
        ),
        ({"analysis": {"name": "diference"}}, "Did you mean 'difference'?"),
        ({"words": [*SMALL, "seed=3"]}, "seeds are said by `seeds`"),
        ({"tune": {**SWEEP["tune"], "seed": 1}}, "seed 1 is tuned on and counted as well"),
        ({"tune": {**SWEEP["tune"], "per": ["quantiser"]}}, "Did you mean 'quantizer'?"),
        ({"axes": {"quantizer": ["full_norm", "binari"]}}, "Did you mean 'binary'"),
        (
            {"analysis": {**QUESTION["analysis"], "metric": "test/acuracy", "better": "higher"}},
            "test/acuracy is not measured by image_classification. Did you mean 'test/accuracy'?",
        ),
        ({"clam": "x"}, "Did you mean 'questions.one.claim'?"),
        ({"axes": {**SWEEP["axes"], "lr_decay_sum": [0, 1]}}, "lr_decay_sum needs the axis optimizer.lr"),
    ],
)
def test_what_cannot_answer_is_refused(
    changes: dict[str, Any], sentence: str, call: Program, tmp_path: Path
) -> None:
    said = call("claims", "check", "mine", "--config-dir", write_claims(tmp_path, **changes))
    assert said.code == 2
    assert sentence in said.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["reloadet"], "Did you mean 'reloaded'?"),
        (["reloaded", "--seeds", "1"], "one seed has no spread"),
        (["reloaded", "--hours", "0"], "--hours=0 should be above 0"),
        (["reloaded", "trainer.epochs=1"], "'trainer.epochs=1' would change the runs"),
        (["reloaded", "--config-dir", "nowhere"], "--config-dir=nowhere is no folder"),
    ],
)
def test_bad_words_are_told(words: list[str], sentence: str, call: Program) -> None:
    said = call("claims", *words)
    assert said.code == 2
    assert sentence in said.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["--scale", "full"],
            "--scale=full: no question of these claims has runs of that scale, but of small",
        ),
        (["--only", "two"], "--only: question 'two' has no runs of scale small, but of full"),
    ],
)
def test_a_scale_without_runs_is_told(words: list[str], sentence: str, call: Program, tmp_path: Path) -> None:
    file = write_claims(tmp_path) / "claims" / "mine.yaml"
    content = yaml.safe_load(file.read_text())
    if words[0] == "--only":
        content["questions"]["two"] = {**QUESTION, "sweep": {"full": SWEEP}}
    file.write_text(yaml.safe_dump(content))
    said = call("claims", "mine", "--config-dir", tmp_path, "--dry-run", *words)
    assert said.code == 2
    assert sentence in " ".join(said.err.split())


def test_ends_of_what_was_tuned_are_its_smallest_and_its_largest_value() -> None:
    words = {(str(lr),): (f"optimizer.lr={lr}",) for lr in (0.01, 0.003, 0.03, 1e-05)}
    part: Any = SimpleNamespace(
        words=words,
        sweep=Sweep.model_validate(
            {**SWEEP, "tune": {"key": "optimizer.lr", "values": [0.01, 1e-05, 0.03, 0.003], "seed": 10}}
        ),
    )
    row: Any = SimpleNamespace(places=list(words))
    assert tuned(part, row) == "1e-05 (an end), 0.003, 0.01, 0.03 (an end)"


def test_weight_decay_follows_from_what_it_sums_to(tmp_path: Path) -> None:
    from bitexp.claims.identity import Identities

    words = [*SMALL, "optimizer.lr=0.01"]
    word = Identities(tmp_path).decay(words, 0.5)
    result = train(*words, word, "logger=csv", base=()).result
    assert result["lr_decay_sum"] == pytest.approx(0.5, rel=1e-3)
