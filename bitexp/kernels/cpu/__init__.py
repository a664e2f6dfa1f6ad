"""The CPU kernels, compiled by numba where it is installed (`pip install 'bitexp[cpu]'`)."""
