"""What models check before they allocate anything: a `ValueError` says what to do instead."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bitexp.common.errors import UserError
from bitexp.common.spelling import nearest


def check_sizes(**sizes: int) -> None:
    """Raises `ValueError` for the first size below 1."""
    for name, size in sizes.items():
        at_least(name, size, 1)


def check_positive(**values: float) -> None:
    """Raises `ValueError` for the first value that is not a finite number above 0."""
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name}={value} must be above 0")


def check_list(name: str, sizes: Sequence[int]) -> None:
    """Raises `ValueError` for an empty list of sizes or one that holds a size below 1."""
    if not sizes:
        raise ValueError(f"{name} is empty; give at least one size, for example {name}=[64]")
    if min(sizes) < 1:
        raise ValueError(f"{name}={list(sizes)} must hold sizes of at least 1")


def check_image(shape: tuple[int, int, int], classes: int) -> None:
    """Raises `ValueError` where the data's shape is not (channels, height, width) of an image."""
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(
            f"shape={tuple(shape)} is not an image: this model takes (channels, height, width), "
            "each at least 1; choose a data set of images"
        )
    check_sizes(classes=classes)


def check_dropout(dropout: float) -> None:
    """Raises `ValueError` unless dropout is a probability below 1."""
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout} must be at least 0 and below 1")


def hidden_width(dim: int, mlp_ratio: float) -> int:
    """`dim * mlp_ratio`, rounded. Raises `ValueError` where that leaves no hidden unit."""
    if not (math.isfinite(mlp_ratio) and dim * mlp_ratio >= 1):
        raise ValueError(f"mlp_ratio={mlp_ratio} leaves no hidden units at dim={dim}; 2 to 4 is usual")
    return round(dim * mlp_ratio)


def check_choice(name: str, word: str, known: Sequence[str]) -> None:
    """Raises `ValueError` for a word that is not among the known ones."""
    if word not in known:
        raise ValueError(
            f"{name}={word} is not known.{nearest(word, known)} Choose one of {', '.join(known)}"
        )


def check_divides(name: str, size: int, whole: int, what: str) -> None:
    """Raises `ValueError`, listing the sizes that do, unless `size` divides `whole` (`what`)."""
    if whole % size:
        choices = ", ".join(str(d) for d in divisors(whole))
        raise ValueError(f"{name}={size} does not divide {what}; choose one of {choices}")


def divisors(n: int) -> list[int]:
    """Every divisor of n, ascending."""
    low = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return sorted({*low, *(n // d for d in low)})


def at_least(key: str, value: int, minimum: int) -> None:
    """Raises `ValueError` for a smaller value."""
    if value < minimum:
        raise ValueError(f"{key}={value} must be at least {minimum}")


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
        raise ValueError(f"{key}={value} must be a fraction from 0.0 to below 1.0; use {key}=0.1 for a tenth")


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
