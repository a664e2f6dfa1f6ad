"""State dicts that torchvision's models leave: the same outputs, and our ViT from theirs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bitexp.common.errors import UserError
from bitexp.deploy.sources import find_source
from bitexp.models.vit import ViT
from tests.support.foreign_models import save_torchvision


def test_a_resnet_computes_what_torchvisions_computes(tmp_path: Path) -> None:
    theirs, file = save_torchvision(tmp_path / "r.pth", "resnet18", num_classes=7), tmp_path / "r.pth"
    source = find_source(f"torchvision:resnet18:{file}")
    x = torch.randn(2, 3, 48, 48)
    assert torch.equal(source.model()(x), theirs(x))
    described = source.describe()
    arguments = {"shape": (3, 224, 224), "classes": 7, "arch": "resnet18", "stem": "imagenet"}
    assert (described["model"], described["model_arguments"]) == ("torchvision", arguments)
    assert find_source(str(file)).identity == source.identity
    save_file(theirs.state_dict(), tmp_path / "r.safetensors")
    same = find_source(f"torchvision:resnet18:{tmp_path}/r.safetensors")
    assert torch.equal(same.model()(x), theirs(x))


def test_our_vit_computes_what_torchvisions_computes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {
        "num_layers": 2,
        "num_heads": 2,
        "hidden_dim": 16,
        "mlp_dim": 24,
        "patch_size": 4,
        "image_size": 8,
    }
    from bitexp.common.torchvision import import_torchvision

    theirs = import_torchvision("torchvision.models").VisionTransformer(**sizes, num_classes=5).eval()
    torch.nn.init.normal_(theirs.class_token)
    torch.nn.init.normal_(theirs.heads.head.weight)
    torch.save(theirs.state_dict(), tmp_path / "v.pth")
    ours = ViT(
        shape=(3, 8, 8), classes=5, patch=4, dim=16, depth=2, heads=2, mlp_ratio=1.5, dropout=0.0, pool="cls"
    ).eval()
    ours.load_state_dict(find_source(str(tmp_path / "v.pth")).weights(model="vit"))
    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        import os

        return os.system, ("echo boom",)


def test_what_is_no_state_dict_is_refused_in_words(tmp_path: Path) -> None:
    file = tmp_path / "x.pth"
    for content, words in (
        (Bomb(), "no file of plain tensors"),
        ([1, 2], "no state dict"),
        ({"fc.weight": 3}, "no state dict"),
        ({"fc.weight": torch.zeros(1).expand(10**6, 10**6)}, "no such memory"),
        ({"fc.weight": torch.full((2, 2), torch.inf)}, "no finite numbers"),
    ):
        torch.save(content, file)
        with pytest.raises(UserError, match=words):
            find_source(str(file)).weights()
    save_torchvision(file, "resnet18")
    with pytest.raises(UserError, match="write torchvision:ARCH:"):
        find_source(str(file)).model()
    with pytest.raises(UserError, match=r"resnet34.*it has no tensor"):
        find_source(f"torchvision:resnet34:{file}").model()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("torchvision:resnet:DEFAULT", "no model 'resnet'.*Did you mean 'resnet"),
        ("torchvision:resnet18", "names no weights"),
        ("torchvision:resnet18:IMAGENET1K_V7", "Did you mean 'IMAGENET1K_V1'"),
        ("torchvision:resnet18:nowhere.pth", "there is no file nowhere.pth"),
    ],
)
def test_a_word_that_torchvision_does_not_know_is_refused(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        find_source(text)


def test_published_weights_that_cannot_be_fetched_say_where_to_put_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match=f"put that file at {tmp_path}"):
        find_source("torchvision:resnet18:IMAGENET1K_V1")
