"""Services that show runs while they train, each a key of `logger`. Every module of this folder is loaded."""

from __future__ import annotations

from bitexp.common.registry import load_modules
from bitexp.track.trackers.tracker import TRACKERS, Tracker

load_modules(__name__, __path__)

__all__ = ["TRACKERS", "Tracker"]
