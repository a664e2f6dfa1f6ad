"""bitexp: experiments with networks of 1, 1.58 and more bits per weight."""

__version__ = "0.1.0"
