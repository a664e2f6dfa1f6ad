"""MLflow: a database beside the runs, or a server; the experiment there is the experiment here."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from bitexp.common.secrets import redacted
from bitexp.config.schema import Settings
from bitexp.track.folder import RunFolder, outputs
from bitexp.track.trackers.tracker import TRACKERS, Tracker, label, require

if TYPE_CHECKING:
    from pytorch_lightning.loggers import MLFlowLogger

ID = "bitexp.run"
"""The tag that holds a run's own id, by which a resumed run finds itself again."""


@TRACKERS.register("mlflow")
class MLflow(Tracker):
    """
    Args:
        uri: of the server; None: MLFLOW_TRACKING_URI, else the SQLite file `mlflow.db` among the outputs.
        tags: more tags, by name.
    """

    def __init__(self, *, uri: str | None, tags: dict[str, str]) -> None:
        self.uri, self.tags = uri, tags

    def check(self) -> None:
        require("mlflow", "mlflow")

    def start(self, settings: Settings, folder: RunFolder) -> MLFlowLogger:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # else it reports every use
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # of 7, minutes without a server
        from mlflow.tracking import MlflowClient
        from pytorch_lightning.loggers import MLFlowLogger

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        outputs().mkdir(parents=True, exist_ok=True)
        uri = self.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{outputs() / 'mlflow.db'}"
        client = MlflowClient(uri)
        known = client.get_experiment_by_name(settings.name)
        experiment = known.experiment_id if known else client.create_experiment(settings.name)
        earlier = client.search_runs([experiment], f"tags.`{ID}` = '{folder.id}'", max_results=1)
        logger = MLFlowLogger(
            settings.name,
            run_name=label(settings, folder),
            tracking_uri=uri,
            run_id=earlier[0].info.run_id if earlier else None,
            tags={ID: folder.id, "quantizer": settings.quantizer.name, **redacted(self.tags)},
        )
        logger.log_hyperparams(redacted(settings.model_dump(mode="json")))
        return logger
