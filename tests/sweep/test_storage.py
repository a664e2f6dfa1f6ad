"""Where studies live: torn journals, databases that are away or wrong, passwords that are never shown."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from optuna.exceptions import StorageInternalError
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError

from bitexp.common.errors import UserError
from bitexp.common.secrets import redacted
from bitexp.sweep import storage
from bitexp.sweep.storage import Store

SECRET = "s3cr3t"


def test_a_torn_last_line_costs_only_itself(work_off: Any, journal: Path, draws: Any) -> None:
    before = work_off(journal, 3)
    whole = journal.read_bytes()
    for torn in (b'{"op_code":4,"wor', b"\x00\x00\x00", b"{", whole.splitlines()[-1]):
        journal.write_bytes(whole + torn)
        Store(str(journal))
        assert journal.read_bytes() == whole
    journal.write_bytes(whole + b'{"op')
    after = work_off(journal, 5)
    assert draws(after[:3]) == draws(before)
    assert [trial.state for trial in after] == [TrialState.COMPLETE] * 5


def test_a_journal_that_is_whole_or_new_stays_as_it_is(work_off: Any, journal: Path, tmp_path: Path) -> None:
    work_off(journal, 1)
    for content in (b"", journal.read_bytes()):
        journal.write_bytes(content)
        Store(str(journal))
        assert journal.read_bytes() == content
    Store(str(tmp_path / "deep" / "er" / "new.journal"))
    assert (tmp_path / "deep" / "er" / "new.journal").read_bytes() == b""


def test_a_line_that_another_process_is_writing_is_not_torn(
    work_off: Any, start: Any, journal: Path, tmp_path: Path, until: Any
) -> None:
    """A job reports, slowly, while another worker opens the journal."""
    work_off(journal, 1)
    half, content = tmp_path / "half", journal.read_bytes()
    begin = content[:-1].rfind(b"\n") + 1
    journal.write_bytes(content[:begin])

    def write_slowly() -> None:
        backend = JournalFileBackend(str(journal))
        backend._lock.acquire()
        with journal.open("ab", buffering=0) as file:
            file.write(content[begin : begin + 9])
            half.touch()
            time.sleep(0.5)
            file.write(content[begin + 9 :])
        backend._lock.release()

    child = start(write_slowly)
    until(half.exists)
    Store(str(journal))
    assert child.wait().code == 0
    assert journal.read_bytes() == content


@pytest.mark.slow
def test_a_worker_killed_while_it_writes_holds_the_others_up_for_a_while_only(
    work_off: Any, start: Any, journal: Path
) -> None:
    def die() -> None:
        def half(self: Any, logs: Any) -> None:
            self._lock.acquire()
            with journal.open("ab", buffering=0) as file:
                file.write(b'{"op_co')
            os.kill(os.getpid(), signal.SIGKILL)

        append, left = JournalFileBackend.append_logs, [25]

        def append_or_die(self: Any, logs: Any) -> None:
            left[0] -= 1
            (append if left[0] else half)(self, logs)

        JournalFileBackend.append_logs = append_or_die  # type: ignore[method-assign]
        work_off(journal, 6)

    assert start(die).wait().code == -signal.SIGKILL
    trials = work_off(journal, 6)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 6


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_one_at_a_time_holds_the_lock(kind: str, tmp_path: Path, start: Any, until: Any) -> None:
    place = str(tmp_path / "j") if kind == "journal" else f"sqlite:///{tmp_path}/s.db"
    store, held, order = Store(place), tmp_path / "held", []

    def hold() -> None:
        with Store(place).exclusive("a"):
            held.touch()
            time.sleep(60)

    child = start(hold)
    until(held.exists)

    def enter(name: str) -> None:
        with store.exclusive("a"):
            order.append(name)
            time.sleep(0.02)
            order.append(name)

    threads = [threading.Thread(target=enter, args=(name,)) for name in "xyz"]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    assert order == []
    os.kill(child.pid, signal.SIGKILL)  # who dies holds it no more
    child.wait()
    for thread in threads:
        thread.join()
    assert [order[n] == order[n + 1] for n in (0, 2, 4)] == [True] * 3


# a database that is away


def away(times: int, error: Exception) -> Any:
    """Work that fails so often before it is done."""
    left = [times]

    def work() -> str:
        left[0] -= 1
        if left[0] >= 0:
            raise error
        return "done"

    return work


GONE = [
    OperationalError("SELECT 1", {}, Exception("server closed the connection")),
    StorageInternalError("gone"),
]


@pytest.mark.parametrize("error", GONE)
def test_a_database_that_comes_back_was_waited_for(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    said: list[str] = []
    store = Store(f"sqlite:///{tmp_path}/s.db", said.append)
    assert store.patiently(away(5, error)) == "done"
    (line,) = said
    assert line.startswith(f"sqlite:///{tmp_path}/s.db does not answer, retrying: ")
    with pytest.raises(type(error)):
        store.patiently(away(5, error), patience=0.0)


def test_patience_is_for_databases_and_for_nothing_else(tmp_path: Path) -> None:
    with pytest.raises(StorageInternalError):
        Store(str(tmp_path / "j")).patiently(away(1, GONE[1]))
    with pytest.raises(KeyError):
        Store(f"sqlite:///{tmp_path}/s.db").patiently(away(1, KeyError()))


# in words


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (
            "mysql://me@host/db",
            r"storage=mysql://\.\.\. is unknown\..*file \(a path\) or .* sqlite, postgresql",
        ),
        ("postgres://me@host/db", "Did you mean 'postgresql'"),
        ("sqllite:///a.db", "Did you mean 'sqlite'"),
        (f"postgresql://me:{SECRET}@host:port/db", "the URL of a database reads postgresql://USER"),
        (
            f"postgresql://me:{SECRET}@127.0.0.1:1/db",
            r"postgresql\+psycopg://me:\*\*\*@127.0.0.1:1/db cannot be",
        ),
        ("postgresql+nodriver://me@h/db", "needs a driver|cannot be used"),
    ],
)
def test_what_is_no_storage_is_told_in_words(
    place: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Store(place)
    assert SECRET not in str(caught.value)


def test_a_driver_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    imported = builtins.__import__

    def no_psycopg(name: str, *rest: Any) -> Any:
        if name.startswith("psycopg"):
            raise ImportError("No module named 'psycopg'")
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", no_psycopg)
    monkeypatch.delitem(__import__("sys").modules, "psycopg", raising=False)
    with pytest.raises(UserError, match=r"needs a driver .*pip install 'bitexp\[postgresql\]'"):
        Store("postgresql://me@127.0.0.1:1/db")


@pytest.mark.parametrize("prefix", ["", "sqlite:///"])
def test_a_place_that_cannot_be_is_told_in_words(prefix: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=rf"cannot be kept in {prefix}.*file/study: .*(directory|exists)"):
        Store(f"{prefix}{tmp_path}/file/study")


def test_a_file_that_is_no_database_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no database " * 99)
    with pytest.raises(UserError, match="file cannot be used: file is not a database"):
        Store(f"sqlite:///{tmp_path}/file")


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("outputs/a.journal", "outputs/a.journal"),
        (f"postgresql://me:{SECRET}@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("sqlite:////tmp/a.db", "sqlite:////tmp/a.db"),
        (f"postgresql://host/db?user=me&password={SECRET}", "postgresql://host/db?user=me&password=***"),
    ],
)
def test_a_place_is_shown_without_its_password(place: str, expected: str) -> None:
    assert redacted(place) == expected


def test_a_connection_string_is_no_name_of_a_journal(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"user=me password=\*\*\* is no path; the URL of a database reads"):
        Store(f"{tmp_path}/host=h user=me password={SECRET}")
    assert not list(tmp_path.iterdir())


def test_the_driver_that_is_installed_is_named_to_sqlalchemy() -> None:
    assert storage.database_url("postgresql://a@b/c") == "postgresql+psycopg://a@b/c"
    assert storage.database_url("postgresql+psycopg2://a@b/c") == "postgresql+psycopg2://a@b/c"
    assert storage.database_url("sqlite:///a") == "sqlite:///a"
