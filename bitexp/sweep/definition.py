"""What makes a study this study, and how much may be spent on it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from optuna.distributions import BaseDistribution, distribution_to_json

from bitexp.common.secrets import redacted
from bitexp.sweep.samplers import EXHAUSTIVE, values

Direction = Literal["minimize", "maximize"]


@dataclass(frozen=True)
class Definition:
    """What makes a study this study: the same definition continues it."""

    fixed: Sequence[str]
    space: Mapping[str, BaseDistribution]
    objectives: Sequence[str]
    directions: Sequence[Direction]
    sampler: Mapping[str, Any]
    pruner: Mapping[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        """As JSON values, without secrets: the study is the same with another password."""
        return {
            "fixed": redacted(sorted(self.fixed)),
            "space": {key: json.loads(distribution_to_json(d)) for key, d in sorted(self.space.items())},
            "objectives": list(self.objectives),
            "directions": list(self.directions),
            "sampler": dict(self.sampler),
            "pruner": None if self.pruner is None else dict(self.pruner),
        }

    def digest(self) -> str:
        """Eight hexadecimal digits that are other for another definition."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def points(self) -> int | None:
        """How many points an exhaustive sampler has to try; None for the other samplers."""
        if self.sampler.get("name") not in EXHAUSTIVE:
            return None
        return math.prod(len(values(d)) for d in self.space.values())


@dataclass(frozen=True)
class Limits:
    """The budget of a study, and what becomes of failures and of silent workers."""

    n_trials: int
    retries: int = 1
    max_failures: int = 10
    heartbeat: float = 30.0
    lost_after: float = 300.0
