"""What remains of a run: its folder, metrics, provenance, and wandb."""
