"""Lightning callbacks: schedule, randomness, checkpoints, diagnostics, progress, guards."""
