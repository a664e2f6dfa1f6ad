"""Secrets among the words of a multirun go into the environment, each value of a sweep by itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Transformer
from omegaconf import OmegaConf

from bitexp.sweep.secret_words import without_secret

CASES = {
    "x.api_key=alpha": ["alpha"],
    "x.api_key='alpha, beta'": ["alpha, beta"],
    "x.api_key=alpha,beta": ["alpha", "beta"],
    "+x.api_key='alpha,1',beta": ["alpha,1", "beta"],
    "x.api_key=choice(alpha,beta)": ["alpha", "beta"],
    "x.api_key=[alpha,beta]": [["alpha", "beta"]],
    "x={api_key: alpha},{api_key: beta}": [{"api_key": "alpha"}, {"api_key": "beta"}],
    "x.url=postgresql://me:alpha@host/a,postgresql://me:beta@host/a": [
        "postgresql://me:alpha@host/a",
        "postgresql://me:beta@host/a",
    ],
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for key in ("X", "X_0", "X_1", "X_API_KEY", "X_API_KEY_0", "X_API_KEY_1", "X_URL_0", "X_URL_1"):
            patch.setenv(f"BITEXP_SECRET_{key}", "")
        yield


@pytest.mark.parametrize(("word", "values"), CASES.items(), ids=list(CASES))
def test_no_value_is_left_in_the_word_and_every_job_gets_its_own(word: str, values: list[object]) -> None:
    safe = without_secret(word)
    assert "alpha" not in safe
    assert "beta" not in safe
    assert without_secret(safe) == safe
    parser = OverridesParser.create()
    override = parser.parse_override(safe)
    assert override.is_sweep_override() == (len(values) > 1)
    jobs = [safe]
    if len(values) > 1:
        jobs = [f"x={text}" for text in override.sweep_iterator(transformer=Transformer.encode)]
    read = [OmegaConf.create({"x": parser.parse_override(job).value()}).x for job in jobs]
    assert [OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for v in read] == values


def test_other_words_stay_as_they_are() -> None:
    for word in ("lr=0.1,0.2", "seed=range(3)", "model.hidden=[1,2]", "x.token=cls"):
        assert without_secret(word) == word
