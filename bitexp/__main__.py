"""The entry point: compose the config, make the run.

    python -m bitexp +experiment=vit_ternary
    python -m bitexp -m +experiment=vit_ternary +sweeps=precisions

Nothing heavy is imported before a job starts, so that --help and --cfg answer at once.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import hydra
from omegaconf import DictConfig

from bitexp.cli.app import composed, register_plugins
from bitexp.config.paths import CONF


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def job(config: DictConfig) -> Any:
    """One job: a single run, or one of a multirun."""
    from bitexp.cli.job import make

    return make(config)


def main() -> None:
    """`python -m bitexp`. Exit codes: 0 done, 1 a run failed, 2 bad input, 130 stopped."""
    if "BITEXP_FOLLOW" in os.environ and int(os.environ.get("LOCAL_RANK", 0)) > 0:
        from bitexp.cli.job import follow_first

        sys.exit(follow_first())
    register_plugins()
    sys.exit(composed(job))


if __name__ == "__main__":
    main()
