"""Secrets are found in whatever is printed or kept; what is none stays as it is."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import pytest

from bitexp.common import console
from bitexp.common.exit import guarded
from bitexp.common.files import write_json, write_yaml
from bitexp.common.secrets import redacted

SECRET = "pa55word"
HOLDERS = [
    f"postgresql://me:{SECRET}@host/db",
    f"postgresql://me:{SECRET}@more@host/db",
    f"postgresql://me:a/{SECRET}@host/db",
    f"postgresql://host/db?user=me&password={SECRET}&sslmode=require",
    f"hydra.sweeper.storage='postgresql://host/db?password={SECRET}'",
    f"host=h user=me password={SECRET}",
    f"+data.api_key={SECRET}",
    f"https://host/file?token={SECRET}",
    f"+data.api_key='{SECRET} and more'",
    f"+data.api_key={SECRET},another{SECRET}",
    f'+    API_KEY = "{SECRET}"',
    f'{{"password": "{SECRET}", "x": 1}}',
    f"logger.mlflow.tags={{api_key: {SECRET}, x: y}}",
]


@pytest.mark.parametrize("text", [*HOLDERS, f"-  x:\n+  api_key: {SECRET}\n   lr: 0.1"])
def test_a_secret_goes_and_the_rest_stays(text: str) -> None:
    shown = redacted(text)
    assert SECRET not in shown
    assert "***" in shown
    assert redacted(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "outputs/a.journal",
        "postgresql://me@host/db",
        "http://host:80/a",
        "model.token=cls",
        "pool=a&b=c",
        "password authentication failed: no such user",
        "api_key=${oc.env:KEY}",
        "api_key='${oc.env:KEY}'",
        "api_key: ${oc.env:KEY}",
        "the password: see above",
        "def password(self): ...",
    ],
)
def test_what_is_no_secret_is_left_alone(text: str) -> None:
    assert redacted(text) == text


def test_values_are_searched_through() -> None:
    value = {"uri": HOLDERS[0], "tags": [HOLDERS[3], 3, None], "wandb": {"api_key": SECRET, "password": 3}}
    assert redacted(value) == {
        "uri": "postgresql://me:***@host/db",
        "tags": ["postgresql://host/db?user=me&password=***&sslmode=require", 3, None],
        "wandb": {"api_key": "***", "password": 3},
    }


@pytest.mark.parametrize("text", HOLDERS)
def test_nothing_is_written_or_printed_with_one(
    text: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(tmp_path / "a.json", {"command": text})
    write_yaml(tmp_path / "a.yaml", [text])
    report = console.Report()
    report.keep(tmp_path / "train.log")
    report.line(text)
    report.rows(text, {"note": text})
    logging.getLogger("pytorch_lightning").warning("a library says %s", text)
    report.close()
    console.error(text)

    def crash() -> Any:
        raise RuntimeError(text)

    monkeypatch.setattr(sys, "excepthook", None)
    with pytest.raises(RuntimeError) as raised:
        guarded(crash)
    sys.excepthook(raised.type, raised.value, raised.tb)
    said = "".join(capfd.readouterr())
    assert "RuntimeError" in said
    assert SECRET not in said
    for path in tmp_path.iterdir():
        assert SECRET not in path.read_text()
        assert "***" in path.read_text()
