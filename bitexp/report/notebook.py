"""Runs in a notebook: the report's numbers as pandas data frames and as a labelled xarray data set.

    import bitexp
    bitexp.results("outputs")                        a row per run
    bitexp.comparisons("outputs/vit_ternary")        a row per precision, with tests over seeds
    bitexp.grid("outputs/vit_ternary")               an axis per swept key

Needs `pip install "bitexp[notebook]"`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitexp.common.errors import UserError
from bitexp.common.spelling import nearest
from bitexp.report.axes import values
from bitexp.report.compare import TOLERANCE, Comparison, compare
from bitexp.report.energy import PICOJOULES, energy
from bitexp.report.margins import check_margin
from bitexp.report.runs import Run, read_runs
from bitexp.report.tables import precision_table
from bitexp.track.folder import outputs

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr


def results(*paths: str | Path) -> pd.DataFrame:
    """Every run at or below the paths (default: all of outputs), one a row, finished or not.

    Columns: experiment, id, precision, seed, status, reason; every key of the configs by its dotted name;
    every metric of result.json by its name; `joules 45 nm` and `joules 7 nm` per inference (estimates);
    what result.json holds besides; command, commit, path.

    Raises:
        UserError: pandas is not installed, a path does not exist, or there are no runs.
    """
    pandas = wanted("pandas")
    return pandas.DataFrame([record(run) for run in read(paths)])


def comparisons(
    *paths: str | Path, tolerance: float = TOLERANCE, margin: float | None = None
) -> pd.DataFrame:
    """The report's table of precisions with numbers in full, experiments below each other.

    `difference` to full precision is on common seeds, with its 95 % interval (`difference_low`,
    `difference_high`), `effect` (Cohen's d_z), and `p` of the paired t test, `p_holm` corrected for all
    differences of the experiment. They are missing where there are fewer than two common seeds. `verdict` is
    better, equivalent, worse or undecided within the `margin` that the runs began with, or the given one;
    with it come `p_equivalent` (both one-sided tests), `p_not_worse` (one of them) and `seeds_needed`.

    Raises:
        UserError: as `results` does.
    """
    pandas = wanted("pandas")
    check_margin(margin)
    frames = [
        pandas.DataFrame(
            {
                "experiment": comparison.name,
                "metric": comparison.metric,
                "mean": row.pop(comparison.metric),
                **row,
            }
            for row in precision_table(comparison).values()
        )
        for comparison in compare(read(paths), tolerance, margin)
    ]
    return pandas.concat(frames, ignore_index=True) if frames else pandas.DataFrame()


def grid(*paths: str | Path, experiment: str | None = None) -> xr.Dataset:
    """The finished runs of one experiment as a data set: an axis for precision, each swept key, and seed.

    Every metric is a variable; where there is no run it is NaN. `ds["val/accuracy"].mean("seed")` and
    `ds.sel(precision="binary")` work as one expects.

    Raises:
        UserError: xarray is not installed, there are no finished runs, or those of several experiments and
            none is named.
    """
    pandas = wanted("pandas")
    wanted("xarray")
    comparison = pick_experiment(compare(read(paths)), experiment)
    axes = comparison.axes
    keys = ("precision", *axes.setting, *axes.variant, *axes.hyperparameters, "seed")
    rows = []
    for run in comparison.runs:
        setting = (run.precision, *values(run, keys[1:-1]), run.seed)
        labels = ("" if value is None else value for value in setting)
        rows.append({**run.metrics, **dict(zip(keys, labels, strict=True))})
    data = pandas.DataFrame(rows).set_index(list(keys)).to_xarray()
    return data.assign_attrs(experiment=comparison.name, headline=comparison.metric)


def pick_experiment(comparisons: list[Comparison], experiment: str | None) -> Comparison:
    """The comparison that is asked for."""
    names = [comparison.name for comparison in comparisons]
    if not comparisons:
        raise UserError("none of these runs is finished")
    if experiment is None and len(comparisons) > 1:
        raise UserError(
            f"there are several experiments: name one, experiment='{names[0]}' ({', '.join(names)})"
        )
    if experiment is not None and experiment not in names:
        raise UserError(
            f"no finished run of '{experiment}'.{nearest(experiment, names)} Known: {', '.join(names)}"
        )
    return comparisons[0] if experiment is None else comparisons[names.index(experiment)]


def record(run: Run) -> dict[str, Any]:
    """A run as a flat row."""
    git = run.attempt.get("git")
    more = {key: value for key, value in run.result.items() if key not in ("metrics", "name", "id")}
    joules = {f"joules {node}": energy(run.metrics, node) for node in PICOJOULES}
    return {
        "experiment": run.name,
        "id": run.id,
        "precision": run.precision,
        "seed": run.seed,
        "status": run.status,
        "reason": run.result.get("reason"),
        **{key: value for key, value in run.flat.items() if key not in ("name", "seed")},
        **run.metrics,
        **joules,
        **{key: value for key, value in more.items() if key not in ("seed", "status", "reason")},
        "command": run.command,
        "commit": git.get("commit") if isinstance(git, dict) else None,
        "path": str(run.path),
    }


def read(paths: tuple[str | Path, ...]) -> list[Run]:
    """The runs at or below the paths."""
    return read_runs([Path(path) for path in paths] or [outputs()])[0]


def wanted(module: str) -> Any:
    """A module of the extra `notebook`."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f"this needs {module}: pip install 'bitexp[notebook]'") from None
