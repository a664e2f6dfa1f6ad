"""`python -m bitexp report`: one command from folders to a page that stands by itself."""

from __future__ import annotations

import base64
import contextlib
import csv
import hashlib
import io
import itertools
import json
import re
import shlex
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from bitexp.__main__ import main
from bitexp.report.runs import read_runs

Write = Callable[..., Path]
HOSTILE = "\"><img src=x onerror=alert(1)><script>alert(2)</script>$x^2$</style>'&amp;{{7*7}}"


@pytest.fixture
def report(in_process: Callable[..., Any]) -> Callable[..., Any]:
    """`python -m bitexp report WORDS...`"""
    call = in_process(main, "bitexp")
    return lambda *words: call("report", *words)


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, and all text."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def links(self) -> list[str]:
        return [str(attrs["href"]) for tag, attrs in self.tags if tag == "a"]


@pytest.fixture(scope="module")
def reported(make_run: Write, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A report over a grid of rates and decays, with curves and diagnostics; and what was said."""
    draw, folder = np.random.default_rng(0), tmp_path_factory.mktemp("runs")
    settings = itertools.product(("full", "binary"), (0.001, 0.002, 0.005, 0.01, 0.02), (0.0, 0.1), (0, 1))
    for number, (quantizer, lr, decay, seed) in enumerate(settings):
        score = float(draw.uniform(0.8, 0.9))
        keys = {"optimizer__lr": lr, "optimizer__weight_decay": decay}
        path = make_run(folder / str(number), quantizer, seed, score, validated=score, **keys)
        lines = [f"{s},0,train/loss,{1 / s}\n{s},0,val/accuracy,{s / 9}\n" for s in range(1, 5)]
        if quantizer == "binary":
            names = ("zero_fraction", "flip_rate", "scale_drift", "flip_rate/a.b", "scale/a.b")
            lines += [f"{s},0,quant/{name},{s / 8}\n" for s in (1, 2) for name in names]
        (path / "metrics.csv").write_text("step,epoch,metric,value\n" + "".join(lines))
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(sys, "argv", ["bitexp", "report", str(folder)])
        with pytest.raises(SystemExit, match="0"):
            main()
    return folder, said.getvalue()


def test_the_page_and_its_files(reported: tuple[Path, str]) -> None:
    folder, said = reported
    assert "within 0.01" in said
    assert f"40 runs, 0 of them not finished. Report: {folder}/report/index.html" in said
    page = Page(folder / "report" / "index.html")
    titles = ("All settings", "Robustness", "Pareto", "PED-ANOVA", "Learning curves", "by layer", "Timeline")
    for title in titles:
        assert title in page.text
    plots = {path.name for path in (folder / "report" / "plots").iterdir()}
    kinds = ("quality", "settings", "parallel", "importance", "curves", "quantization", "layers")
    stems = {*(f"made_up-{kind}" for kind in kinds), "timeline"}
    assert plots == {f"{stem}.{form}" for stem in stems for form in ("svg", "png")}
    for path in (folder / "report" / "plots").glob("*.svg"):
        assert ET.parse(path).getroot().tag.endswith("svg")
    for path in (folder / "report" / "plots").glob("*.png"):
        with Image.open(path) as picture:
            assert np.asarray(picture.convert("L")).std() > 1
    text = (folder / "report" / "tables" / "made_up-precisions.csv").read_text()
    assert [row["precision"] for row in csv.DictReader(io.StringIO(text))] == ["full", "binary"]
    assert "## made\\_up" in (folder / "report" / "report.md").read_text()


def test_the_page_needs_nothing_and_nobody(reported: tuple[Path, str]) -> None:
    page = Page(reported[0] / "report" / "index.html")
    assert len(page.source) < 1_000_000
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "object", "embed", "form", "img"}
    policy = next(attrs for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in str(policy["content"])
    assert [attrs for tag, attrs in page.tags if tag == "script"] == [{}]
    (script,) = re.findall(r"<script>(.*?)</script>", page.source, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in str(policy["content"]), "no other script may run"
    addresses = set(re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'\s)>]*)""", page.source))
    assert not [address for address in addresses if re.match(r"(https?:)?//", address)]
    assert "prefers-color-scheme:dark" in page.source
    assert "@media print" in page.source
    for _, drawing in zip(range(9), re.findall(r"<svg.*?</svg>", page.source, re.DOTALL), strict=False):
        ids = re.findall(r'\bid="([^"]+)"', drawing)
        used = re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', drawing)
        assert set(used) <= set(ids)  # what is drawn is in the drawing


def test_every_row_leads_to_its_runs(reported: tuple[Path, str]) -> None:
    folder = reported[0]
    page = Page(folder / "report" / "index.html")
    folders = {(folder / "report" / unquote(link)).resolve() for link in page.links()}
    assert folders == {path.parent for path in folder.rglob("result.json")}


def test_hostile_names_and_configs_stay_text(write_run: Write, outputs: Path, report: Any) -> None:
    evil = outputs / "javascript:alert(1)" / 'a"><svg onload=alert(3)>'
    write_run("full", 0, 0.9, folder=evil / "1", name=HOSTILE, typed=[f"name={HOSTILE}"])
    write_run("binary", 0, 0.8, folder=evil / "2", name=HOSTILE, model__hidden=HOSTILE, typed=["=evil"])
    gone = write_run("binary", 1, 0.8, folder=evil / "3", name=HOSTILE)
    (gone / "result.json").write_text(
        '{"status": "failed", "kind": "crash", "source": "", "seconds": 1, '
        '"reason": "<script>alert(4)</script>"}'
    )
    (write_run(folder=evil / "4") / "config.yaml").write_text("!!python/name:<script>alert(5)</script>")
    ended = report(outputs)
    assert ended.code == 0, ended.err
    page = Page(outputs / "report" / "index.html")
    assert not {tag for tag, _ in page.tags} & {"img", "iframe"}
    assert [tag for tag, _ in page.tags].count("script") == 1
    attributes = {name for _, attrs in page.tags for name in attrs}
    assert not [name for name in attributes if name.startswith("on")]
    assert all(link.startswith(("../", "#")) for link in page.links())
    assert HOSTILE in page.text
    assert "<script>alert(4)</script>" in page.text
    written = [path.name for path in (outputs / "report").rglob("*")]
    assert not [name for name in written if re.search(r"[^\w.-]", name)]
    for path in (outputs / "report" / "plots").glob("*.svg"):
        tree = ET.parse(path)
        assert not [node for node in tree.iter() if node.tag.endswith("script")]


def test_a_terminal_obeys_no_name(write_run: Write, outputs: Path, report: Any) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\x9b31m[bold]x 三值"
    for value, (lr, decay) in itertools.product((evil, "tame"), ((evil, 0.1), (1, evil), (evil, evil))):
        path = write_run("full", 0, 0.9, model__hidden=value, optimizer__lr=lr, optimizer__weight_decay=decay)
        (path / "metrics.csv").write_text(f"s,e,m,v\n1,0,quant/flip_rate,1\n1,0,quant/scale/{evil},1\n")
    (write_run("binary", 1) / "config.yaml").write_text("\x1b[2J")
    ended = report(outputs)
    assert ended.code == 0
    assert "[bold]x" in ended.out
    assert not set(ended.out) & {"\x1b", "\x07", "\x9b"}
    drawings = list((outputs / "report" / "plots").glob("*.svg"))
    assert len(drawings) > 3
    for path in drawings:
        ET.parse(path)


def test_what_did_not_finish_or_cannot_be_read_is_listed(
    write_run: Write, outputs: Path, report: Any
) -> None:
    write_run("full", 0, 0.9)
    failed = write_run("binary", 0, 0.9)
    (failed / "result.json").write_text(
        '{"status": "failed", "kind": "diverged", "source": "", "seconds": 1, "reason": "the loss is nan"}'
    )
    running = write_run("binary", 1, 0.9)
    (running / "result.json").unlink()
    (running / "metrics.csv").write_text("step,epoch,metric,value\n1200,3,train/loss,0.5\n")
    (write_run("binary", 2, 0.9) / "result.json").write_text("{")
    ended = report(outputs)
    assert ended.code == 0
    assert "3 runs, 2 of them not finished" in ended.out
    assert "result.json is damaged" in ended.out
    text = Page(outputs / "report" / "index.html").text
    for words in ("the loss is nan", "no result yet; at step 1,200", "result.json is damaged"):
        assert words in text


def test_nothing_but_unfinished_runs_make_a_page(write_run: Write, outputs: Path, report: Any) -> None:
    (write_run() / "result.json").unlink()
    assert report(outputs).code == 0
    assert "0 finished runs" in Page(outputs / "report" / "index.html").text


@pytest.mark.slow
def test_five_hundred_runs(write_run: Write, outputs: Path, report: Any) -> None:
    for seed in range(250):
        for quantizer in ("full", "binary"):
            write_run(quantizer, seed, 0.9 + seed / 5000, optimizer__lr=(seed % 25 + 1) / 1000)
    assert report(outputs).code == 0
    page = outputs / "report" / "index.html"
    assert page.stat().st_size < 1_000_000
    assert "500 finished runs" in Page(page).text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere does not exist: name the folder of a run"),
        (["."], "looked for folders with a config.yaml or a result.json"),
        ([".", "--tolerance", "2"], "--tolerance=2 must be from 0 up to 1"),
        ([".", "--margin", "-1"], "margin=-1 must be above 0"),
        ([".", "--every", "0"], "--every=0 must be at least 1 second"),
    ],
)
def test_bad_input_is_told(
    words: list[str], said: str, report: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = report(*words)
    assert ended.code == 2
    assert said in ended.err
    assert "Traceback" not in ended.err


def test_a_folder_that_cannot_be_written_is_told(write_run: Write, tmp_path: Path, report: Any) -> None:
    path = write_run()
    (tmp_path / "file").touch()
    ended = report(path, "--out", tmp_path / "file" / "x")
    assert ended.code == 2
    assert "--out names another folder" in ended.err


def test_the_report_of_one_run_lies_beside_it(write_run: Write, report: Any) -> None:
    path = write_run()
    assert report(path).code == 0
    assert (path.parent / "report" / "index.html").exists()


def test_panels_stand_above_each_other_on_a_phone() -> None:
    from bitexp.report import figure

    def shape(rows: int, columns: int) -> tuple[int, int, float]:
        drawing, axes = figure.new(9.0, 3.0, rows, columns)
        return (*axes.shape, drawing.get_figheight() / axes.shape[0])

    assert shape(1, 3) == (1, 3, 3.0)
    with figure.narrow():
        assert shape(1, 3) == (3, 1, 3.0)
        assert figure.new(9.0, 3.0)[0].get_figwidth() == figure.NARROW
    assert shape(2, 2) == (2, 2, 1.5)


def test_watching_writes_again_when_a_run_ends(
    write_run: Write, outputs: Path, report: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs.mkdir(parents=True)  # empty at first: the sweep is about to begin
    runs = [("full", 0, 0.9), None, ("binary", 0, 0.8), None]
    waits = iter([(lambda run=run: run and write_run(*run)) for run in runs])

    def sleep(seconds: float) -> None:
        assert seconds == 7
        try:
            next(waits)()
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr("time.sleep", sleep)
    ended = report(outputs, "--watch", "--every", "7")
    assert ended.code == 0
    assert [int(n) for n in re.findall(r"(\d+) runs?, ", ended.out)] == [1, 2]
    assert 'http-equiv="refresh" content="14"' in (outputs / "report" / "index.html").read_text()


def test_watching_the_index_of_a_multirun_follows_its_jobs(
    write_run: Write, outputs: Path, report: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (jobs := outputs / "made_up" / "sweeps" / "today" / "jobs").mkdir(parents=True)

    def end(number: int, run: Path | None) -> None:
        record = {"overrides": [f"seed={number}"], "status": "finished" if run else "failed", "reason": "nan"}
        (jobs / f"{number}.json").write_text(json.dumps(record | ({"run": str(run)} if run else {})))

    steps = iter(
        [lambda: None, lambda: end(0, write_run("full", 0, 0.9)), lambda: None, lambda: end(1, None)]
    )

    def sleep(seconds: float) -> None:
        try:
            next(steps)()
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr("time.sleep", sleep)
    ended = report(jobs.parent, "--watch")
    assert (ended.code, ended.err) == (0, "")
    assert re.findall(r"(\d+) runs?, ", ended.out) == ["1", "1"]
    assert ended.out.count("seed=1: failed: nan") == 1


def test_the_tolerance_holds_on_the_page_and_in_the_terminal(
    write_run: Write, outputs: Path, report: Any
) -> None:
    for lr, score in ((0.001, 0.9), (0.01, 0.6), (0.1, 0.3)):
        write_run("full", 0, score, optimizer__lr=lr)
    ended = report(outputs, "--tolerance", "0.5")
    for text in (ended.out, (outputs / "report" / "report.md").read_text()):
        assert "within 0.5" in text
        assert "67%" in text
        assert "within 0.01" not in text


def test_real_runs_are_reported(command: Any, small: Any, outputs: Path, report: Any) -> None:
    ended = command("-m", *small, "quantizer=full,binary", "seed=0,1")
    assert ended.code == 0, ended.err
    said = report(outputs)
    assert said.code == 0, said.err
    assert "energy per image" in said.out
    table = [line for line in ended.out.splitlines() if "±" in line]
    assert table
    assert all(line in said.out.splitlines() for line in table)  # one source of the numbers
    run = read_runs([outputs])[0][0]
    assert run.command in Page(outputs / "report" / "index.html").text
    again = command(*shlex.split(run.command)[3:])
    assert "finished before; nothing was trained" in again.out


def test_nothing_that_a_report_shows_or_keeps_holds_a_secret(
    write_run: Any, outputs: Path, report: Callable[..., Any]
) -> None:
    secret = "pa55word"
    url = f"postgresql://me:{secret}@host/db"
    write_run("full", 0, 0.9, typed=[f"+data.api_key={secret}"], model__hidden=[1, url])
    write_run("binary", 0, 0.8, made={"host": url, "git": {"commit": url}, "device": url})
    write_run("int", 0, 0.8, result={"status": "failed", "kind": "crash", "reason": f"no answer from {url}"})
    (outputs / "made_up" / "broken").mkdir()
    (outputs / "made_up" / "broken" / "config.yaml").write_text(f"a: &x {url}\nb: *y\n")
    ended = report(outputs)
    assert ended.code == 0
    assert secret not in ended.out + ended.err
    assert "api_key=***" in (outputs / "report" / "index.html").read_text()
    files = [path for path in (outputs / "report").rglob("*") if path.is_file()]
    assert [path for path in files if secret.encode() in path.read_bytes()] == []
