"""Where a study lives: a journal file, or a database that several machines share.

Optuna's storages know no lock across processes, and without one several workers overshoot a budget. A `Store`
adds it (a lock file; PostgreSQL's advisory lock), and patience with a server that is away for a while.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from filelock import FileLock

from bitexp.common.errors import UserError, first_line
from bitexp.common.secrets import holds_secret, redacted
from bitexp.common.spelling import nearest

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from sqlalchemy import Engine

PATIENCE = 600.0  # seconds that a database may be away in the middle of a sweep
DATABASES = ("sqlite", "postgresql")
URLS = "the URL of a database reads postgresql://USER:PASSWORD@HOST:PORT/DATABASE or sqlite:////PATH"
STORAGE = "BITEXP_STORAGE"
"""The environment variable in which a user, or a sweeper for its jobs, names the storage of studies."""

T = TypeVar("T")


class Store:
    """A storage of Optuna's, the lock that all workers of a study share, and patience."""

    def __init__(self, place: str, say: Callable[[str], None] = lambda text: None) -> None:
        """`place` is the path of a journal file or the URL of a database.

        Raises:
            UserError: a database that cannot be reached, or of a kind without a lock we know.
        """
        if "://" not in place and holds_secret(place):
            raise UserError(f"storage: {redacted(place)} is no path; {URLS}")
        self.place, self._say = place, say
        self._engine: Engine | None = None
        self._lock: FileLock | None = None
        try:
            self.storage = self._open_file(Path(place)) if "://" not in place else self._connect(place)
        except OSError as error:
            raise UserError(f"a study cannot be kept in {redacted(place)}: {error}") from None

    def _open_file(self, path: Path) -> BaseStorage:
        path.parent.mkdir(parents=True, exist_ok=True)
        # a lock for each thread: flock keeps threads apart as it does processes
        self._lock = FileLock(path.with_name(f".{path.name}.lock"))
        with self._lock:
            return open_journal(path)

    def _connect(self, place: str) -> BaseStorage:
        import sqlalchemy
        from optuna.exceptions import StorageInternalError
        from optuna.storages import RDBStorage
        from sqlalchemy.pool import NullPool

        url = database_url(place)
        if (file := sqlite_file(url)) is not None:
            self._lock = FileLock(f"{file}.lock")
        try:
            if self._lock is None:
                self._engine = sqlalchemy.create_engine(url, poolclass=NullPool)
            with self.exclusive("bitexp"):  # two workers that create the tables at once would collide
                return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
        except ImportError as error:
            raise UserError(
                f"the database {redacted(url)} needs a driver ({error}): pip install 'bitexp[postgresql]'"
            ) from None
        except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError) as error:
            reason = first_line(error.__cause__ or error)
            raise UserError(f"the database {redacted(url)} cannot be used: {reason}") from None

    def close(self) -> None:
        """Closes the connections to a database."""
        from optuna.storages import RDBStorage

        if isinstance(self.storage, RDBStorage):
            self.storage.remove_session()
            self.storage.engine.dispose()

    @contextlib.contextmanager
    def exclusive(self, name: str) -> Iterator[None]:
        """Holds the lock of that name, against threads and against other processes and machines."""
        if self._lock is not None:
            with self._lock:
                yield
            return
        import sqlalchemy

        assert self._engine is not None
        key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:key)"), {"key": key})
            yield  # closing the connection gives the lock back; to ask for it could fail when all is done

    def patiently(self, work: Callable[[], T], patience: float = PATIENCE) -> T:
        """Does `work`, again and again while the database is away; it has to bear being begun anew."""
        if "://" not in self.place:
            return work()
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import DBAPIError

        deadline, pause, announced = time.monotonic() + patience, 0.2, False
        while True:
            try:
                return work()
            except (DBAPIError, StorageInternalError) as error:
                if time.monotonic() > deadline:
                    raise
                if not announced:
                    reason = first_line(error.__cause__ or error)
                    self._say(f"{redacted(self.place)} does not answer, retrying: {reason}")
                    announced = True
                time.sleep(pause)
                pause = min(2 * pause, 10.0)


def open_journal(path: Path) -> BaseStorage:
    """Optuna's storage in a file that is only appended to; safe on shared file systems."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

    lock = JournalFileSymlinkLock(str(path))
    backend = JournalFileBackend(str(path), lock)
    if torn(path):
        lock.acquire()  # what looks torn may be a line that another process is writing
        try:
            mend(path)
        finally:
            lock.release()
    return JournalStorage(backend)


def torn(path: Path) -> bool:
    """Whether the last line of a file has no end."""
    with path.open("rb") as file:
        return file.seek(0, 2) > 0 and file.seek(-1, 2) >= 0 and file.read(1) != b"\n"


def mend(path: Path) -> None:
    """Cuts off a last line without an end: what a full disk or a power cut leaves would spoil the next."""
    if torn(path):
        with path.open("r+b") as file:
            file.truncate(path.read_bytes().rfind(b"\n") + 1)


def database_url(place: str) -> str:
    """The URL with the driver that is installed. Raises `UserError` for what is no database we can lock."""
    scheme = place.partition("://")[0]
    kind = scheme.partition("+")[0]
    if kind not in DATABASES:
        raise UserError(
            f"storage={scheme}://... is unknown.{nearest(kind, DATABASES)} A study can be kept in a journal "
            f"file (a path) or in a database: {', '.join(DATABASES)}"
        )
    return f"postgresql+psycopg{place[len('postgresql') :]}" if scheme == "postgresql" else place


def sqlite_file(url: str) -> str | None:
    """The file of an SQLite database; None for a server."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parsed: Any = make_url(url)
    except (ArgumentError, ValueError):  # without what is in it: it may be a password
        raise UserError(
            f"storage: {URLS}; percent-encode special characters in the password (@ as %40)"
        ) from None
    return str(parsed.database) if parsed.get_backend_name() == "sqlite" else None
