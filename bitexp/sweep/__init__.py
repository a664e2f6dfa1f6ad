"""Sets of runs: tuned settings, and the table at the end of a multirun."""
