"""A config outside of the entry point: for benchmarks, commands, notebooks, sources of other runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bitexp.common.errors import UserError


def composed(overrides: Sequence[str]) -> dict[str, Any]:
    """The resolved config for some overrides, as `python -m bitexp OVERRIDES --cfg job --resolve` shows it.

    Raises:
        UserError: an override that cannot be, in words.
    """
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from bitexp.config.composition import compose_lazily
    from bitexp.config.composition_errors import explain

    try:
        config: Any = OmegaConf.to_container(compose_lazily(overrides), resolve=True)
    except (HydraException, OmegaConfBaseException) as problem:
        raise UserError(explain(problem, overrides)) from problem
    return {str(key): value for key, value in config.items()}


def composed_alike(overrides: Sequence[str]) -> dict[str, Any]:
    """The same with tuned settings where asked for; in a job from where the configs of that job are.

    Raises:
        UserError: an override that cannot be, in words.
    """
    from hydra.errors import HydraException
    from omegaconf import OmegaConf, open_dict
    from omegaconf.errors import OmegaConfBaseException

    from bitexp.config.composition import compose_as_job
    from bitexp.config.composition_errors import explain
    from bitexp.config.tuned import apply_tuned

    try:
        config = compose_as_job(overrides)
        of_hydra = config.hydra
        with open_dict(config):
            del config["hydra"]
        apply_tuned(config, of_hydra, overrides)
        plain: Any = OmegaConf.to_container(config, resolve=True)
    except (HydraException, OmegaConfBaseException) as problem:
        raise UserError(explain(problem, overrides)) from problem
    return {str(key): value for key, value in plain.items()}
