"""A screen that knows few characters, or is lost."""

import errno
import io
import sys

import pytest

from bitexp.common.console import Report, write
from bitexp.common.errors import UserError
from bitexp.common.screen import Screen, loss, protect


class Broken(io.StringIO):
    def __init__(self, code):
        super().__init__()
        self.code, self.attempts = code, 0

    def write(self, text):
        self.attempts += 1
        raise OSError(self.code, "gone")


@pytest.mark.parametrize("code", [errno.EPIPE, errno.ENOSPC, errno.EIO])
def test_a_run_goes_on_and_its_log_says_why_the_screen_is_silent(tmp_path, monkeypatch, code):
    stream = Broken(code)
    monkeypatch.setattr(sys, "stdout", Screen(stream, keep_going=True))
    report = Report()
    report.keep(tmp_path / "train.log")
    for line in ("one", "two", "three"):
        report.line(line)
    report.close()
    lines = [line[20:] for line in (tmp_path / "train.log").read_text().splitlines()]
    assert lines[1:] == ["one", "two", "three"]
    assert lines[0].startswith("the screen is gone (gone)")
    assert stream.attempts == 1
    assert loss().errno == code


def test_a_command_whose_answer_is_lost_says_so():
    with pytest.raises(UserError, match="could not be written: gone"):
        Screen(Broken(errno.ENOSPC), keep_going=False).write("answer")
    with pytest.raises(BrokenPipeError):
        Screen(Broken(errno.EPIPE), keep_going=False).write("answer")


def test_a_terminal_of_few_characters_gets_likenesses(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    monkeypatch.setattr(sys, "stderr", None)
    protect(keep_going=True)
    write("a · b × 2 ± 1 → ü …\n")
    assert raw.getvalue() == b"a - b x 2 +- 1 -> ? ...\n"
