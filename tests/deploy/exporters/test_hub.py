"""An exported folder is complete for the hub: a card with metadata that it reads, configs, a tokenizer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from bitexp.common.errors import UserError
from bitexp.common.files import read_json, write_json
from bitexp.data import DATA
from bitexp.deploy.description import Description
from bitexp.deploy.exporters.exporter import Packed
from bitexp.deploy.exporters.hub import measured
from bitexp.deploy.exporters.writing import build, write
from bitexp.track.folder import checksum
from tests.support.exports import PORTABLE, described, packed
from tests.support.marks import others_slow
from tests.support.quantizers import make_quantizer
from tests.support.run_folders import write_run_folder

FILES = {
    "transformers": {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    },
    "gguf": {"model.gguf"},
    "c": {"model.c", "model.h", "test.c"},
}  # fmt: skip


def test_a_decoder_without_a_tokenizer_generates_text_as_well(tmp_path: Path) -> None:
    source = packed(tmp_path, described("b158", **PORTABLE), {"imported": "GGUF file"})
    write(build("gguf", {}), source, tmp_path / "out")
    assert ModelCard.load(tmp_path / "out" / "README.md").data.pipeline_tag == "text-generation"


def of_a_run(source: Packed, data: dict[str, Any], metrics: dict[str, float]) -> Packed:
    """The same packed file as that of a finished run."""
    folder = source.path.parent / "run"
    metrics = {"test/loss": 1.0, "test_packed/loss": 1.0, **metrics}
    files = {source.path.name: checksum(source.path)}
    write_run_folder(folder, data=data, result={"metrics": metrics, "headline": "test/loss", "files": files})
    return replace(source, path=source.path.rename(folder / source.path.name))


@pytest.fixture
def decoder(tmp_path: Path) -> Packed:
    return packed(tmp_path, described("b158", **PORTABLE))


@pytest.fixture
def classifier(tmp_path: Path) -> Packed:
    """A network for Fashion-MNIST that was tested."""
    sizes = {"shape": (1, 4, 4), "classes": 10, "hidden": [8], "activation": "relu", "dropout": 0.0}
    image = {"channels": 1, "size": [4, 4], "divide_by": 255, "mean": [0.3], "std": [0.4]}
    source = packed(
        tmp_path, Description("mlp", sizes, make_quantizer("binary").to_json(), exclude=["head"]), image
    )
    metrics = {"val/accuracy": 0.5, "test/accuracy": 0.8827, "test_packed/accuracy": 0.8827000141143799}
    return of_a_run(source, {"name": "fashion_mnist"}, metrics)


@pytest.mark.parametrize("target", FILES)
def test_a_folder_can_be_published(tmp_path: Path, decoder: Packed, target: str) -> None:
    write(build(target, {"license": "apache-2.0"}), decoder, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES[target] | {"README.md"}
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "apache-2.0"
    assert {"bitexp", "quantization", "b158"} <= set(card.data.tags)
    assert card.text.lstrip().startswith("# packed, for ")
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.library_name == ("transformers" if target == "transformers" else None)
    assert card.data.eval_results is card.data.datasets is None  # nothing is known of a file alone


@pytest.mark.parametrize("target", others_slow(["c", "torch"], ["c"]))
def test_results_are_in_the_words_of_the_hub(tmp_path: Path, classifier: Packed, target: str) -> None:
    write(build(target, {}), classifier, tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    expected = EvalResult(
        task_type="image-classification",
        dataset_type="zalando-datasets/fashion_mnist",
        dataset_name="Fashion-MNIST",
        dataset_split="test",
        metric_type="accuracy",
        metric_name="test accuracy, packed file",
        metric_value=0.8827,
    )
    assert card.data.eval_results == [expected]
    tags = ["bitexp", "quantization", *(["tinyml"] if target == "c" else []), "binary"]
    whole = ModelCardData(  # which checks the results, and writes what the hub is to read
        license="unknown",
        pipeline_tag="image-classification",
        tags=tags,
        datasets=["zalando-datasets/fashion_mnist"],
        metrics=["accuracy"],
        eval_results=[expected],
        model_name="packed",
    )
    assert card.data.to_dict() == whole.to_dict()
    assert "On the test part of Fashion-MNIST the packed file has: accuracy 0.8827." in card.text


def test_results_of_text(tmp_path: Path, decoder: Packed) -> None:
    metrics = {"test_packed/bits_per_byte": 1.9, "test_packed/perplexity": 3.7}
    source = of_a_run(decoder, {"name": "huggingface", "path": "owner/texts"}, metrics)
    write(build("transformers", {"base_model": "owner/base-1"}), source, tmp_path / "out")
    data = ModelCard.load(tmp_path / "out" / "README.md").data
    assert (data.base_model, data.datasets) == ("owner/base-1", ["owner/texts"])
    found = {result.metric_type: result.metric_value for result in data.eval_results}
    assert found == {"bits_per_byte": 1.9, "perplexity": 3.7}
    assert {result.dataset_name for result in data.eval_results} == {"owner/texts"}
    with pytest.raises(UserError, match="OWNER/NAME"):
        write(build("gguf", {"base_model": "outputs"}), source, tmp_path / "other")


def test_results_of_another_file_are_not_told(classifier: Packed) -> None:
    assert measured(classifier) is not None
    place = classifier.path.parent / "result.json"
    write_json(place, read_json(place) | {"files": {"packed.safetensors": "0"}})
    assert measured(classifier) is None


def test_own_files_have_no_name_on_the_hub(tmp_path: Path) -> None:
    assert DATA.get("huggingface").hub_name({"path": str(tmp_path)}) is None
    assert DATA.get("digits").hub_name({}) is None
