"""A private Slurm of one node, for as long as some tests need it: Debian's `slurm-wlm` and `munge`."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scancel", "sinfo", "squeue")
PATIENCE = 60.0  # seconds for the daemons to come up
CONF = """\
ClusterName=bitexp
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
MinJobAge=300
KillWait=5
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory={memory} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """What a Slurm needs and is not here; empty where one can be started."""
    lacking = [name for name in PROGRAMS if shutil.which(name) is None]
    return lacking if os.getuid() == 0 else [*lacking, "root"]


@dataclass(frozen=True)
class Slurm:
    """Running daemons, with all that they write in a folder."""

    folder: Path

    @property
    def conf(self) -> Path:
        """What `SLURM_CONF` is to name."""
        return self.folder / "slurm.conf"

    def ask(self, *words: str) -> str:
        """What a command of Slurm's prints. Raises `CalledProcessError`."""
        environment = {**os.environ, "SLURM_CONF": str(self.conf)}
        done = subprocess.run(words, check=True, capture_output=True, text=True, env=environment)
        return done.stdout

    def state(self) -> str:
        """How the node is, `idle` where it has nothing to do; empty while the controller does not answer."""
        with contextlib.suppress(subprocess.CalledProcessError):
            return self.ask("sinfo", "--noheader", "--format=%t").strip()
        return ""

    def end_jobs(self) -> None:
        """Kills what is left and waits until nothing runs."""
        user = pwd.getpwuid(os.getuid()).pw_name
        self.ask("scancel", "--quiet", f"--user={user}")
        self.ask("scancel", "--quiet", "--full", "--signal=KILL", f"--user={user}")
        wait_until(lambda: not self.ask("squeue", "--noheader"), lambda: self.ask("squeue"))


@contextlib.contextmanager
def serving() -> Iterator[Slurm]:
    """A Slurm for a while: `munged`, the controller and one node that offers this machine's cores."""
    folder = Path(tempfile.mkdtemp(prefix="bitexp-slurm-"))
    folder.chmod(0o755)
    slurm = Slurm(folder)
    with contextlib.ExitStack() as last:
        last.callback(shutil.rmtree, folder, ignore_errors=True)
        configure(slurm)
        for command in commands(slurm):
            last.enter_context(daemon(command, folder))
        wait_until(lambda: "idle" in slurm.state(), lambda: f"the node is {slurm.state()}\n{logs(folder)}")
        last.callback(slurm.end_jobs)
        yield slurm


def configure(slurm: Slurm) -> None:
    """Writes what the daemons read, a key among it."""
    folder, host = slurm.folder, socket.gethostname().partition(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 * 9 // 10
    slurm.conf.write_text(
        CONF.format(host=host, folder=folder, ports=free_ports(2), cores=os.cpu_count(), memory=memory)
    )
    (key := folder / "munge.key").write_bytes(os.urandom(128))
    key.chmod(0o600)


def commands(slurm: Slurm) -> Iterator[list[str]]:
    """What is to run, in this order."""
    names = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    yield [
        "munged",
        "--foreground",
        *(f"--{option}={slurm.folder}/munge.{name}" for option, name in names.items()),
    ]
    yield ["slurmctld", "-D", "-f", str(slurm.conf)]
    yield ["slurmd", "-D", "-f", str(slurm.conf)]


@contextlib.contextmanager
def daemon(command: list[str], folder: Path) -> Iterator[None]:
    """A program that runs until it is told to end."""
    with (folder / f"{command[0]}.out.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        if command[0] == "munged":
            wait_until((folder / "munge.socket").exists, lambda: logs(folder))
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until(holds: Callable[[], bool], problem: Callable[[], str]) -> None:
    """Waits for the daemons."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, problem()
        time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def logs(folder: Path) -> str:
    """What the daemons have said."""
    return "\n".join(path.read_text(errors="replace") for path in sorted(folder.glob("*.log")))
