""".env.example names every setting, once, with a sentence before it, and is itself a valid .env."""

import re
from pathlib import Path

import pytest

from app.core.config import Settings

EXAMPLE = Path(__file__).parents[2] / ".env.example"


def names() -> set[str]:
    return {str(field.validation_alias or name).upper() for name, field in Settings.model_fields.items()}


def test_every_setting_is_there_once_with_a_sentence() -> None:
    paragraphs = [part for part in EXAMPLE.read_text().split("\n\n") if "=" in part]
    found = []
    for paragraph in paragraphs:
        *comments, assignment = paragraph.strip().splitlines()
        assert comments, assignment
        assert all(re.match(r"#( |$)", line) for line in comments), paragraph
        match = re.fullmatch(r"#?([A-Z_]+)=.*", assignment)
        assert match, assignment
        found.append(match[1])
    assert sorted(found) == sorted(names())


def test_the_values_shown_are_the_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in names():
        monkeypatch.delenv(name, raising=False)
    shown = tmp_path / "shown"
    shown.write_text(re.sub(r"^#(?=[A-Z_]+=)", "", EXAMPLE.read_text(), flags=re.M))
    base = {"POSTROAD_MODE": "local", "secret_key": "x" * 32}
    assert Settings(_env_file=shown, **base) == Settings(_env_file=None, **base)


def test_production_refuses_the_secret_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in names():
        monkeypatch.delenv(name, raising=False)
    (line,) = re.findall(r"^#(SECRET_KEY=.{32,})$", EXAMPLE.read_text(), re.M)
    with pytest.raises(ValueError, match="SECRET_KEY must be set"):
        Settings(_env_file=None, secret_key=line.partition("=")[2])
