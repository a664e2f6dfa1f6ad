"""The YAML of the group `data`: each file lists every key of its data set."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from bitexp.config.arguments import check_arguments, keywords
from bitexp.data import DATA

FILES = sorted((Path(__file__).parents[2] / "conf" / "data").glob("*.yaml"))


@pytest.fixture
def composed(tmp_path):
    """The group `data` as a run gets it."""
    (tmp_path / "data").symlink_to(FILES[0].parent)

    def build(name, *overrides):
        (tmp_path / "config.yaml").write_text(f"defaults: [{{data: {name}}}]")
        with initialize_config_dir(str(tmp_path), version_base="1.3"):
            return OmegaConf.to_container(compose("config", list(overrides)).data, resolve=True)

    return build


@pytest.mark.parametrize("name", [path.stem for path in FILES])
def test_lists_every_key(composed, name):
    values = composed(name)
    assert values.pop("name") == name
    kind = DATA.get(name)
    check_arguments("data", kind, values, given=["seed"])
    parameters = keywords(kind)
    assert set(values) == set(parameters) - {"seed"}
    for parameter in parameters.values():
        assert parameter.kind is parameter.KEYWORD_ONLY
        assert parameter.default is parameter.empty
    kind(**values, seed=0)


@pytest.mark.parametrize("override", ["data.batchsize=1", "data.augment.crops=1"])
def test_a_typo_is_an_error(composed, override):
    with pytest.raises(ConfigCompositionException):
        composed("cifar10", override)
