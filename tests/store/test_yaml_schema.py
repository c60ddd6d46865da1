"""Strict YAML: what fits is bound, and what does not is an error that names file and line."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from frepro.errors import FreproError
from frepro.store.yaml_schema import Document


@dataclass(frozen=True)
class Part:
    size: int
    line: int = 0


@dataclass(frozen=True)
class Whole:
    name: str
    rate: float = 0.5
    kind: Literal["a", "b"] = "a"
    limit: float | None = None
    parts: dict[int, Part] = field(default_factory=dict)
    pair: tuple[int, int] = (0, 0)


def bind(tmp_path, text):
    path = tmp_path / "whole.yaml"
    path.write_text(text)
    return Document.read(path).bind(Whole)


def test_binds_nested_values(tmp_path):
    whole = bind(tmp_path, "name: x\nrate: 1\nlimit: 2.5\nparts:\n  7: {size: 3}\npair: [1, 2]\n")
    assert whole == Whole("x", 1.0, "a", 2.5, {7: Part(3, 5)}, (1, 2))
    assert isinstance(whole.rate, float)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("name: x\nrte: 1\n", 2, "unknown key 'rte': did you mean rate"),
        ("rate: 1\n", 1, "'name' is missing"),
        ("name: x\nname: y\n", 2, "duplicate key"),
        ("name: 3\n", 1, "expected text, found 3"),
        ("name: x\nrate: 1e-3\n", 2, "write 1.0e-3"),
        ("name: x\nkind: c\n", 2, "expected one of 'a', 'b'"),
        ("name: x\nparts:\n  1: {size: true}\n", 3, "expected an integer, found True"),
        ("name: x\npair: [1]\n", 2, "expected 2 values, found 1"),
        ("name: x\nlimit: [1]\n", 2, "expected one value, found a list"),
        ("name: [\n", 2, "invalid YAML"),
        ("", 1, "empty"),
    ],
)
def test_errors_name_file_and_line(tmp_path, text, line, message):
    with pytest.raises(FreproError) as error:
        bind(tmp_path, text)
    assert str(error.value).startswith(f"{tmp_path / 'whole.yaml'}:{line}: ")
    assert message in str(error.value)


def test_overlay_keeps_lines_and_replaces_values(tmp_path):
    path = tmp_path / "two.yaml"
    path.write_text("base: {name: x, rate: 1}\nover:\n  rate: 2\n  kind: z\n")
    parts = {key: value for key, (_, value) in Document.read(path).items().items()}
    with pytest.raises(FreproError, match=r"two\.yaml:4: expected one of"):
        parts["base"].overlaid(parts["over"]).bind(Whole)
