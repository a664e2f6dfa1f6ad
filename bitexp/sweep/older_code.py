"""Which trials were made by other code than that of now: a method may be edited, and told values stay."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from bitexp.common.format import counted
from bitexp.track.folder import RunFolder
from bitexp.track.provenance import source_fingerprint

SHOWN = 8
"""So many trials are named, no more."""


def about_older_code(trials: Iterable[FrozenTrial]) -> str | None:
    """A sentence about the trials whose values other code has given; None where there are none."""
    now: dict[str, Any] = {}
    others = []
    for trial in trials:
        run = str(trial.user_attrs.get("run", ""))
        ended = trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        attempts = RunFolder(Path(run)).attempts() if ended and run else []
        if not attempts:
            continue
        words = {key: value for key, value in trial.params.items() if isinstance(value, str)}
        kind = json.dumps(words, sort_keys=True)  # other words, as of a quantizer, may name other classes
        if kind not in now:
            now[kind] = code_now(Path(run))
        if now[kind] not in (None, {key: attempts[-1].get(key) for key in ("source", "code")}):
            others.append(trial.number)
    if not others:
        return None
    shown = ", ".join(map(str, others[:SHOWN])) + ", ..." * (len(others) > SHOWN)
    were = "was" if len(others) == 1 else "were"
    return (
        f"{counted(len(others), 'trial')} of this study ({shown}) {were} made by other code than that of "
        "now, and the values stay. The same command with rerun=older makes a study of its own, by this code"
    )


def code_now(run: Path) -> Mapping[str, Any] | None:
    """What provenance would say of the code if this run were made now; None where it cannot be made."""
    from bitexp.config.schema import read_settings
    from bitexp.report.runs import read_config
    from bitexp.run.build import build
    from bitexp.run.named import named_classes
    from bitexp.track.code import code_of

    try:
        settings = read_settings(read_config(run))
        code = code_of(named_classes(settings, build(settings)))
    except Exception:  # whatever edited code may raise: the trials will meet it, and tell
        return None
    return {"source": source_fingerprint(), "code": dict(code.digests)}
