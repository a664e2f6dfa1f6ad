"""A wandb workspace "Precisions compared": curves, bars, quality against bytes, settings, importance.

    python -m bitexp dashboard --entity my-team --experiment vit_ternary
    python -m bitexp dashboard --entity my-team --json workspace.json    # without network

Runs must be on the server: `make sync` uploads offline ones. Needs `pip install "bitexp[dashboard]"`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bitexp.common.console import Report
from bitexp.common.errors import UserError
from bitexp.common.files import write_json
from bitexp.common.program import run_program
from bitexp.report.workspaces_private import serialised

NAME = "Precisions compared"
STEP = "trainer/global_step"
PRECISION = "quantizer.name"
"""The key of the config by which everything is grouped: seeds fall together."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.add_argument("--entity", default=os.environ.get("WANDB_ENTITY"), help="wandb user or team")
    parser.add_argument("--project", default="bitexp", help="default: bitexp, as logger.wandb.project")
    parser.add_argument("--experiment", help="show only the runs of this experiment")
    parser.add_argument("--metric", default="accuracy", help="accuracy (default), bits_per_byte, perplexity")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the workspace here, send nothing")


def workspace(entity: str, project: str, metric: str, experiment: str | None) -> Any:
    """The workspace as an object of wandb-workspaces; nothing is sent.

    Raises:
        UserError: wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.workspaces as ws
    except ImportError:
        raise UserError("this needs wandb-workspaces: pip install 'bitexp[dashboard]'") from None
    settings = ws.RunsetSettings(groupby=[ws.Config(PRECISION)])
    if experiment is not None:
        settings.filters = ws.And(ws.Config("name") == experiment)
    sections = [
        ws.Section(name=title, panels=panels, is_open=number < 3)
        for number, (title, panels) in enumerate(panels_of(metric).items())
    ]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME if experiment is None else f"{NAME}: {experiment}",
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis=STEP),
        runset_settings=settings,
        auto_generate_panels=False,
    )


def panels_of(metric: str) -> dict[str, list[Any]]:
    """The panels by section, under the names of metrics and config keys that every run logs."""
    import wandb_workspaces.reports.v2 as wr

    precision = wr.Config(PRECISION)
    grouped: dict[str, Any] = {"groupby": precision, "groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}

    def line(name: str, **options: Any) -> Any:
        return wr.LinePlot(title=name, x=STEP, y=[name], **grouped, **options)

    def bar(name: str) -> Any:
        return wr.BarPlot(title=f"{name}: mean and deviation over seeds", metrics=[name], **grouped)

    def scatter(x: Any, title: str) -> Any:
        return wr.ScatterPlot(title=title, x=x, y=wr.SummaryMetric(f"test/{metric}"), log_x=True)

    def column(name: str, metric: Any, log: bool = False) -> Any:
        return wr.ParallelCoordinatesPlotColumn(metric, display_name=name, log=log)

    columns = [
        column("precision", precision),
        column("lr", wr.Config("optimizer.lr"), log=True),
        column("weight decay", wr.Config("optimizer.weight_decay")),
        column(f"val/{metric}", wr.SummaryMetric(f"val/{metric}")),
        column(f"test/{metric}", wr.SummaryMetric(f"test/{metric}")),
    ]
    return {
        "Which precision wins": [
            bar(f"test/{metric}"),
            line(f"val/{metric}"),
            line("train/loss", log_y=True),
        ],
        "At what cost": [
            scatter(wr.SummaryMetric("size/total_bytes"), "quality against bytes of the packed file"),
            scatter(wr.SummaryMetric("cost/fp32_mul"), "quality against fp32 multiplications"),
            bar("size/body_bytes"),
            bar("time/step_ms"),
        ],
        "Learning rate and weight decay": [
            wr.ParallelCoordinatesPlot(columns=columns, title="settings"),
            wr.ParameterImportancePlot(with_respect_to=f"val/{metric}"),
        ],
        "Quantization": [
            line("quant/zero_fraction"),
            line("quant/flip_rate", log_y=True),
            line("quant/scale_drift"),
        ],
        "Runs side by side": [wr.RunComparer(diff_only=True)],
    }


def run(options: argparse.Namespace) -> None:
    """Sends the workspace, or writes it to a file.

    Raises:
        UserError: no entity, no login, or the server refuses.
    """
    if not options.entity:
        raise UserError("whose workspace? Name your wandb user or team with --entity or WANDB_ENTITY")
    built = workspace(options.entity, options.project, options.metric, options.experiment)
    if options.json is not None:
        try:
            write_json(options.json, serialised(built))
        except OSError as error:
            raise UserError(f"{options.json} cannot be written: {error}") from None
        Report().line(f"Written to {options.json}; without --json it is sent to wandb.")
        return
    from bitexp.track.trackers.wandb import has_key

    if not has_key():
        raise UserError(
            "a workspace lives on the wandb server and no API key was found: run `wandb login` once, or "
            "set WANDB_API_KEY. Without a server there is `python -m bitexp report`, and `wandb leet` in a "
            "terminal"
        )
    try:
        built.save()
    except Exception as error:  # whatever a server and its client can raise
        raise UserError(f"wandb refused the workspace: {error}") from error
    Report().line(f"Saved: {built.url}")


def main(words: Sequence[str]) -> int:
    """`python -m bitexp dashboard`."""
    return run_program("dashboard", __doc__, add_arguments, run, words)
