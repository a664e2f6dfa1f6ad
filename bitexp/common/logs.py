"""One calm style: tips and notes of the libraries are kept off the screen, warnings go to train.log."""

from __future__ import annotations

import logging
import warnings

import torch

NOISE = (
    # Lightning, where data.val_size=0
    r"Total length of `list` across ranks is zero.*",
    # Lightning: small images in memory load fastest without workers
    r".*does not have many workers.*",
    # Lightning: a few batches an epoch are what small data sets have
    r".*The number of training batches \(\d+\) is smaller than the logging interval.*",
    # Lightning, on the login node of a cluster: what is started there runs there
    r"The `srun` command is available.*",
    # Lightning asks torch for tree specs in a way that torch deprecates
    r".*isinstance\(treespec, LeafSpec\).*",
)


def quiet_libraries(threads: int) -> None:
    """Sets the number of torch threads and silences what is no news to a user."""
    torch.set_num_threads(threads)
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    warnings_log = logging.getLogger("py.warnings")
    warnings_log.propagate = False
    if not warnings_log.handlers:
        warnings_log.addHandler(logging.NullHandler())
    for pattern in NOISE:
        warnings.filterwarnings("ignore", pattern)
