"""Bounds of the numbers that a user gives for a data set."""

from __future__ import annotations

from bitexp.errors import UserError


def at_least(key: str, value: int, minimum: int) -> None:
    """Raises `ValueError` for a smaller value."""
    if value < minimum:
        raise ValueError(f"{key}={value} is too small; use {minimum} or more")


def check_share(key: str, value: int | float) -> None:
    """Raises `ValueError` for what is neither a count nor a fraction below 1."""
    if value < 0 or (isinstance(value, float) and not value < 1):
        raise ValueError(
            f"{key}={value} is neither a fraction from 0.0 to below 1.0 nor a number of images; "
            f"use {key}=0.1 for a tenth, or {key}=500 for 500 images"
        )


def check_fraction(key: str, value: float) -> None:
    """Raises `ValueError` for what is no fraction below 1."""
    if not 0 <= value < 1:
        raise ValueError(f"{key}={value} is no fraction from 0.0 to below 1.0; use {key}=0.1 for a tenth")


def held_out_count(size: int | float, count: int, key: str) -> int:
    """How many of `count` images a fraction or a count means.

    Raises:
        UserError: none would be left.
    """
    held = round(size * count) if isinstance(size, float) else size
    if held >= count:
        raise UserError(
            f"{key}={size} holds out {held} of {count} images and leaves none to train on; choose less"
        )
    return held
