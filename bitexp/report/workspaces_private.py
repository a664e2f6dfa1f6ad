"""All that bitexp uses of wandb-workspaces' private API. Written for wandb-workspaces 0.4.13."""

from __future__ import annotations

import json
from typing import Any


def serialised(workspace: Any) -> dict[str, Any]:
    """What saving a workspace would send to the server."""
    view = workspace._to_model()
    spec = json.loads(view.spec.model_dump_json(by_alias=True, exclude_none=True))
    return {"entity": view.entity, "project": view.project, "displayName": view.display_name, "spec": spec}
