"""What a sweep says while it runs."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bitexp.common.console import Report
from bitexp.sweep import live_view as module
from bitexp.sweep.live_view import LiveView


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def terminal(width: int = 120) -> tuple[Report, io.StringIO]:
    """A report to what takes itself for a terminal of so many columns."""
    report, screen = Report(), io.StringIO()
    report.console = Console(file=screen, force_terminal=True, width=width, highlight=False, soft_wrap=True)
    return report, screen


def test_each_job_that_ends_is_a_line_with_the_best_and_the_time_left(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    view = LiveView(Report(), total=4, workers=1, better="max")
    jobs: list[tuple[str, str | None, list[float]]] = [
        ("finished", None, [0.5]),
        ("failed", "the loss is nan at step 3", []),
        ("finished", None, [0.25]),
        ("pruned", "val/accuracy 0.1", []),
    ]
    for number, (status, reason, values) in enumerate(jobs):
        view.began(number, f"lr={number}")
        clock[0] += 60
        view.ended(number, status, reason, values)
    assert capsys.readouterr().out.splitlines() == [
        "[1/4] 0: finished · 0.5000 · lr=0 · 1:00 · best 0.5000 by 0 · about 3:00 left",
        "[2/4] 1: failed · the loss is nan at step 3 · lr=1 · 1:00 · best 0.5000 by 0 · about 2:00 left",
        "[3/4] 2: finished · 0.2500 · lr=2 · 1:00 · best 0.5000 by 0 · about 1:00 left",
        "[4/4] 3: pruned · val/accuracy 0.1 · lr=3 · 1:00 · best 0.5000 by 0",
    ]


@pytest.mark.parametrize(("better", "best"), [("max", 0.9), ("min", 0.1), (None, None)])
def test_the_best_is_at_the_better_end(better: str | None, best: float | None) -> None:
    view = LiveView(Report(quiet=True), 3, 1, better)
    for number, value in enumerate([0.5, float("nan"), 0.1, 0.9]):
        view.ended(number, "finished", None, [value])
    assert (view.best and view.best[0]) == best
    view.ended(9, "finished", None, [0.0, 1.0])  # of two objectives none is the best
    assert (view.best and view.best[0]) == best


def test_workers_share_the_time_left(clock: list[float]) -> None:
    view = LiveView(Report(quiet=True), 10, workers=3)
    assert view.left() is None
    view.skip({"finished": 3, "failed": 1})
    view.began(4, "")
    clock[0] += 30
    view.ended(4, "finished")
    assert view.left() == pytest.approx(30 * 5 / 3)
    assert (view.done, view.counts) == (5, {"finished": 4, "failed": 1})


def test_without_a_total_nothing_is_promised(capsys: pytest.CaptureFixture[str]) -> None:
    view = LiveView(Report(), None, 1)
    view.ended(0, "finished", None, [1.0])
    assert capsys.readouterr().out == "[1] 0: finished · 1.0000 · 0 s\n"


def test_words_in_brackets_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    view = LiveView(Report(), 1, 1)
    view.began(0, "model.hidden=[bold]")
    view.ended(0, "failed", "[/] is no path")
    assert "[/] is no path · model.hidden=[bold]" in capsys.readouterr().out


def test_a_terminal_has_a_table_that_renews_itself_below_the_lines(clock: list[float]) -> None:
    report, screen = terminal()
    looked: list[int] = []

    def look(number: int) -> tuple[str, float]:
        looked.append(number)
        return "0.4321 at 50%", 0.5

    with LiveView(report, 3, 2, "max", look=look) as view:
        view.began(0, "model.hidden=[8]")
        view.began(1, "model.hidden=[16]")
        clock[0] += 75
        view.ended(0, "finished", None, [0.75])
        view._live.refresh()  # type: ignore[union-attr]
        view.line("Trial 2 goes on")
    text = screen.getvalue()
    assert "1: running 1:15 0.4321 at 50% model.hidden=[16]" in " ".join(text.split())
    assert "1 of 3 done: 1 finished · about 56 s left · best 0.7500 by 0 (model.hidden=[8])" in text
    assert "[1/3] 0: finished · 0.7500 · model.hidden=[8] · 1:15" in text
    assert "Trial 2 goes on" in text
    assert 1 in looked


def test_the_table_shows_some_of_many_jobs() -> None:
    report, screen = terminal()
    with LiveView(report, 99, 50) as view:
        for number in range(50):
            view.began(number, f"seed={number}")
    running = {
        line.split()[0] for line in screen.getvalue().splitlines() if ": " in line and "running" in line
    }
    assert f"{module.ROWS - 1}:" in " ".join(running)
    assert "seed=49" not in screen.getvalue()


@pytest.mark.parametrize(("live", "of_a_terminal"), [(False, True), (True, False)])
def test_no_table_where_it_would_disturb(live: bool, of_a_terminal: bool) -> None:
    report = terminal()[0] if of_a_terminal else Report(quiet=True)
    assert LiveView(report, 1, 1, live=live)._live is None


def test_the_table_goes_when_the_sweep_fails() -> None:
    report, screen = terminal()
    with pytest.raises(KeyError), LiveView(report, 1, 1) as view:
        raise KeyError
    assert not view._live.is_started  # type: ignore[union-attr]
    assert screen.getvalue().endswith("\x1b[?25h") or "\x1b[?25h" in screen.getvalue()  # the cursor is back


def test_jobs_may_end_in_any_thread_at_once() -> None:
    import threading

    view = LiveView(Report(quiet=True), 40, 4, "max")

    def work(first: int) -> None:
        for number in range(first, first + 10):
            view.began(number, "")
            time.sleep(0.001)
            view.ended(number, "finished", None, [float(number)])

    threads = [threading.Thread(target=work, args=(n,)) for n in (0, 10, 20, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (view.done, view.counts["finished"]) == (40, 40)
    assert view.best is not None
    assert view.best[:2] == (39.0, 39)


def test_the_parameters_of_a_trial_in_words() -> None:
    from bitexp.sweep.workers import described

    params: dict[str, Any] = {"optimizer.lr": 0.0123456, "quantizer": "full", "model.dim": 64, "x": 1.0}
    assert described(params) == "optimizer.lr=0.0123 quantizer=full model.dim=64 x=1"


def test_the_time_left_goes_on_while_jobs_run(clock: list[float]) -> None:
    """From how far they are, before any has ended; it goes down with the clock."""
    shares = {0: 0.0, 1: 0.0}
    view = LiveView(Report(quiet=True), 4, 2, look=lambda number: ("", shares[number]))
    for number in shares:
        view.began(number, "")
    assert view.left() is None
    clock[0] += 30
    shares |= {0: 0.5, 1: 0.5}
    assert view.left() == pytest.approx((30 + 30 + 2 * 60) / 2)
    view.ended(0, "finished")  # after half a minute
    clock[0] += 10
    assert view.left() == pytest.approx((80 / 2 + 30 / 2 - 40 + 2 * 30) / 2)


def test_a_slow_beginning_does_not_put_the_end_off(clock: list[float]) -> None:
    """A job's first step comes after its imports: the time of others counts, too."""
    view = LiveView(Report(quiet=True), 3, 1, look=lambda number: ("", 0.01))
    for number in (0, 1):
        view.began(number, "")
        clock[0] += 30
        view.ended(number, "finished")
    view.began(2, "")
    clock[0] += 6  # and not 600
    assert view.left() == pytest.approx(0.01 * 600 + 0.99 * 30 - 6)


@pytest.mark.parametrize("width", [80, 100, 120])
def test_a_narrow_terminal_cuts_words_and_not_numbers(clock: list[float], width: int) -> None:
    report, screen = terminal(width)
    words = "optimizer.lr=0.001 optimizer.weight_decay=0.01 quantizer=ternary_median model=vit_mini seed=0"
    with LiveView(report, 20, 2, "max", look=lambda number: ("epoch 3/9  val/accuracy 0.9", 0.5)) as view:
        for number in (10, 11):
            view.began(number, words)
        clock[0] += 75
        view._live.refresh()  # type: ignore[union-attr]
        view.ended(10, "finished", None, [0.75])
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue()).replace("\r", "\n")
    assert "11: running 1:15  epoch 3/9  val/accuracy 0.9  " in text
    lines = [line.rstrip() for line in text.splitlines()]
    assert max(map(len, lines)) <= width
    told = " ".join(lines[next(i for i, line in enumerate(lines) if line.startswith("[1/20]")) :])
    assert told.startswith(f"[1/20] 10: finished · 0.7500 · {words} · 1:15 · best 0.7500 by 10")


def test_a_reason_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    view = LiveView(Report(), 3, 1)
    for number, reason in enumerate(("no such model", "no such model", "another")):
        view.ended(number, "failed", reason)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" · ")[1] for line in lines] == ["no such model", "as 0", "another"]


def test_the_table_says_what_running_jobs_have_measured(tmp_path: Path) -> None:
    look = module.LastLines(tmp_path)
    assert look(0) == ("", 0.0)
    lines = "noise\nepoch 1/9  step 10/1,000  loss 3.0  lr 1e-3\n"
    lines += "epoch 3/9  step 250/1,000  loss 0.512  val/accuracy 0.9  lr 1e-3  5 ms/step\n"
    (tmp_path / "0.log").write_text(lines)
    assert look(0) == ("epoch 3/9  loss 0.512  val/accuracy 0.9", 0.25)
