"""What every room uses and what knows nothing of the others: errors, files, registries, the console."""
