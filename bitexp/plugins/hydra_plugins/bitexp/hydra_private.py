"""All that bitexp uses of Hydra's private API. Written for Hydra 1.3.8 and hydra-ray-launcher 1.2.

What Hydra's own packages have under an underscore has no public counterpart: the public `return_value` of a
job that failed prints and raises.
"""

from __future__ import annotations

from typing import Any

from hydra.core.utils import JobReturn


def problem_of(job: JobReturn) -> Any:
    """What a job that failed raised."""
    return job._return_value


def start_ray(options: Any) -> None:
    """Starts Ray with the `init` options of its launcher."""
    from hydra_plugins.hydra_ray_launcher import _launcher_util

    _launcher_util.start_ray(options)
