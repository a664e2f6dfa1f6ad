"""What Hydra finds of bitexp: thin shells around `bitexp.sweep`. Hydra imports them at every start."""
