"""The sections `optimizer` and `scheduler`, of which each choice has keys of its own."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from bitexp.config.sections import Beta, NotNegative, Positive, Section, Share


class Adam(Section):
    name: Literal["adamw", "adam"]
    lr: Positive
    weight_decay: NotNegative
    betas: Annotated[list[Beta], Field(min_length=2, max_length=2)]
    eps: Positive
    stochastic_rounding: bool
    kahan: bool = False


class Sgd(Section):
    name: Literal["sgd"]
    lr: Positive
    weight_decay: NotNegative
    momentum: Beta
    nesterov: bool
    stochastic_rounding: bool
    kahan: bool = False


class Muon(Section):
    """Muon for the weight matrices of quantized layers, AdamW for all else."""

    name: Literal["muon"]
    lr: Positive
    weight_decay: NotNegative
    momentum: Beta
    nesterov: bool
    betas: Annotated[list[Beta], Field(min_length=2, max_length=2)]
    eps: Positive
    stochastic_rounding: bool
    kahan: bool


class Cage(Section):
    """AdamW that pulls latent weights to their levels towards the end."""

    name: Literal["cage"]
    lr: Positive
    weight_decay: NotNegative
    betas: Annotated[list[Beta], Field(min_length=2, max_length=2)]
    eps: Positive
    pull: NotNegative
    silent: Annotated[float, Field(ge=0, lt=1)]


class Dqt(Section):
    """AdamW whose steps move weights from level to level."""

    name: Literal["dqt"]
    lr: Positive
    weight_decay: NotNegative
    betas: Annotated[list[Beta], Field(min_length=2, max_length=2)]
    eps: Positive


class Lamb(Section):
    """AdamW whose steps are as large as the weights that they change."""

    name: Literal["lamb"]
    lr: Positive
    weight_decay: NotNegative
    betas: Annotated[list[Beta], Field(min_length=2, max_length=2)]
    eps: Positive
    stochastic_rounding: bool
    kahan: bool


Optimizer = Adam | Sgd | Muon | Cage | Dqt | Lamb


class Cosine(Section):
    name: Literal["cosine"]
    warmup: Share
    final: Share


class Constant(Section):
    name: Literal["constant"]
    warmup: Share


class TwoStage(Section):
    name: Literal["two_stage"]
    warmup: Share
    switch_at: Share
    second_peak: Share
    second_weight_decay: NotNegative
