"""A private PostgreSQL server, for as long as some tests need it."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PASSWORD = "pa55@word"
REQUIRED = "BITEXP_REQUIRE_POSTGRESQL"
"""Set in the environment, it makes of a skipped test a failed one."""


def program(name: str) -> str | None:
    """A program of PostgreSQL; distributions keep those of the server off the PATH."""
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda p: int(p.parts[4]))
    return str(places[-1]) if places else shutil.which(name)


def identity() -> dict[str, Any]:
    """The server refuses to run as root: another user's process, where we are root."""
    if os.getuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    pytest.skip("PostgreSQL does not run as root, and there is no user postgres or nobody")


@dataclass
class Server:
    """A private server with its data in a folder."""

    folder: Path
    host: str
    port: int
    identity: dict[str, Any]

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def control(self, *words: str) -> None:
        command = [str(program("pg_ctl")), "-D", str(self.folder / "data"), "-w", "-t", "120", *words]
        done = subprocess.run(
            command, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, **self.identity
        )
        assert done.returncode == 0, done.stdout + done.stderr + self.log.read_text()

    def url(self, database: str, password: str | None = PASSWORD) -> str:
        secret = "" if password is None else f":{password.replace('@', '%40')}"
        return f"postgresql://bitexp{secret}@{self.host}:{self.port}/{database}"


@contextlib.contextmanager
def serving(host: str) -> Iterator[Server]:
    """A server for a while, in a folder that its user may enter: pytest's own are closed to others."""
    who = identity()
    folder = Path(tempfile.mkdtemp(prefix="bitexp-postgresql-"))
    try:
        server = serve(folder, host, who)
        try:
            yield server
        finally:
            server.control("-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


def serve(folder: Path, host: str, who: dict[str, Any]) -> Server:
    """Makes a cluster in a folder and starts its server."""
    if who:
        os.chown(folder, who["user"], who["group"])
    (secret := folder / "password").write_text(PASSWORD)
    secret.chmod(0o644)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = Server(folder, host, port, who)
    command = [str(program("initdb")), "-D", str(folder / "data"), "-U", "bitexp", "-A", "scram-sha-256"]
    command += [f"--pwfile={secret}", "--no-sync", "-E", "UTF8", "--locale=C"]
    subprocess.run(command, cwd="/", check=True, capture_output=True, **who)
    (folder / "data" / "postgresql.auto.conf").write_text(
        f"listen_addresses = '{host}'\nport = {port}\nunix_socket_directories = ''\n"
        "max_connections = 50\nshared_buffers = 16MB\nfsync = off\n"
    )
    with (folder / "data" / "pg_hba.conf").open("a") as file:
        file.write("host all all samenet scram-sha-256\n")
    server.control("-l", str(server.log), "start")
    return server
