"""wandb: offline unless asked otherwise, no prompt, closed in every case."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import netrc
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlparse
from uuid import uuid4

from filelock import FileLock, Timeout

from bitexp.common.errors import UserError
from bitexp.common.secrets import redacted
from bitexp.config.schema import Settings
from bitexp.track.folder import RunFolder, outputs
from bitexp.track.trackers.tracker import TRACKERS, Tracker, label

if TYPE_CHECKING:
    from pytorch_lightning.loggers import WandbLogger

LAUNCH = "wandb.sdk.launch.inputs.internal"
"""Where wandb stages the inputs of a job that it launches."""


@TRACKERS.register("wandb")
class Wandb(Tracker):
    """A run there has the run's own id, so that a resumed run continues it.

    Group: the experiment and quantizer, so that seeds fall together; tags: quantizer and kernel. The mode
    `disabled` is that of the variable WANDB_MODE.
    """

    def __init__(
        self, *, mode: Literal["offline", "online"], project: str, entity: str | None, tags: list[str]
    ) -> None:
        self.mode, self.project, self.entity, self.tags = mode, project, entity, tags

    def check(self) -> None:
        if self.mode == "online" and not has_key():
            raise UserError(
                "logger.wandb.mode=online needs a wandb key and there is none: run `wandb login` once, "
                "or set WANDB_API_KEY, or keep logger.wandb.mode=offline and upload later with "
                "`make sync`"
            )

    def start(self, settings: Settings, folder: RunFolder) -> WandbLogger:
        wandb = imported(outputs() / ".scraps")
        from pytorch_lightning.loggers import WandbLogger

        if self.mode == "offline" and forget(folder):
            self.replays = True
        with nothing_staged(), usable_cache():
            run = wandb.init(
                dir=folder.path,
                mode="disabled" if os.environ.get("WANDB_MODE") == "disabled" else self.mode,
                project=self.project,
                entity=self.entity,
                id=folder.id,
                name=label(settings, folder),
                group=f"{settings.name}/{settings.quantizer.name}",
                job_type="train",
                tags=[settings.quantizer.name, f"kernel:{settings.kernel.name}", *redacted(self.tags)],
                config=redacted(settings.model_dump(mode="json")),
                resume="allow",
                reinit="create_new",
                settings=wandb.Settings(silent=True, console="off"),
            )
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        return WandbLogger(experiment=run, save_dir=folder.path, project=self.project)

    def finish(self, logger: Any, failed: bool) -> None:
        logger.experiment.finish(exit_code=int(failed))


@contextlib.contextmanager
def nothing_staged() -> Iterator[None]:
    """Spares a start of wandb the import of its launcher of jobs, which takes longer than all the rest.

    It is imported only to ask for inputs that were staged, and who stages one has imported it.
    """
    if LAUNCH in sys.modules:
        yield
        return
    nothing: Any = ModuleType(LAUNCH)
    nothing.StagedLaunchInputs = lambda: SimpleNamespace(apply=lambda run: None)
    sys.modules[LAUNCH] = nothing
    try:
        yield
    finally:
        del sys.modules[LAUNCH]


@contextlib.contextmanager
def usable_cache() -> Iterator[None]:
    """A place for the log of wandb's service where the home has none: else it would be on the screen."""
    named, home = os.environ.get("XDG_CACHE_HOME"), os.environ.get("HOME")
    cache = Path(named) if named else Path(home) / ".cache" if home else None
    if cache is not None and can_hold(cache / "wandb"):
        yield
        return
    place = tempfile.mkdtemp(prefix="bitexp-wandb-")
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    os.environ["XDG_CACHE_HOME"] = place
    try:
        yield
    finally:
        del os.environ["XDG_CACHE_HOME"]
        if named is not None:
            os.environ["XDG_CACHE_HOME"] = named


def can_hold(folder: Path) -> bool:
    """Whether files can be made in a folder, which is made where it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def forget(folder: RunFolder) -> bool:
    """Removes what earlier attempts left to upload: offline, each has a folder of its own, under one id."""
    earlier = [
        path
        for path in folder.path.glob("wandb/offline-run-*")
        if path.is_dir() and not any(path.glob("*.synced"))
    ]
    for path in earlier:
        shutil.rmtree(path, ignore_errors=True)
    return bool(earlier)


def imported(scraps: Path) -> Any:
    """The module, which makes temporary folders on import. Those of processes that were killed go."""
    if "wandb" not in sys.modules:
        scraps.mkdir(parents=True, exist_ok=True)
        for left in scraps.glob("*.lock"):
            with contextlib.suppress(Timeout, OSError), FileLock(left, timeout=0):
                remove(left)
        own = FileLock(scraps / f"{uuid4().hex}.lock")  # held while this process lives
        own.acquire()
        atexit.register(remove, Path(own.lock_file), os.getpid())
        before, tempfile.tempdir = tempfile.tempdir, str(Path(own.lock_file).with_suffix(""))
        Path(tempfile.tempdir).mkdir()
        try:
            importlib.import_module("wandb.sdk.artifacts.artifact")
        finally:
            tempfile.tempdir = before
    return sys.modules["wandb"]


def remove(lock: Path, owner: int | None = None) -> None:
    """Removes the temporary folder of a lock, and the lock; with an owner, in that process only."""
    if owner in (None, os.getpid()):
        shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
        lock.unlink(missing_ok=True)


def has_key() -> bool:
    """Whether a run can go online without asking."""
    named = any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"))
    return named or stored_key()


def stored_key() -> bool:
    """Whether `wandb login` has left a key for the server in use."""
    server = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(server) is not None
    except (OSError, netrc.NetrcParseError):
        return False
