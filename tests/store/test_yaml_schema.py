"""Strict YAML: what fits is bound, and what does not is an error that names file and line."""

from dataclasses import dataclass, field
from typing import Any, Literal

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


@dataclass(frozen=True)
class Free:
    args: dict[str, Any]
    name: str = ""
    size: int = 0
    rate: float = 0.0


@pytest.mark.parametrize(
    "text",
    [
        *(
            f"args: {{a: {value}}}"
            for value in (
                *("!!python/object/apply:os.system [ls]", "!!binary aGk=", "!!binary '!'", "!unknown x", "2020-01-01"),
                *("2020-99-99", "!!timestamp x", "!!int x", "!!float x", "!!bool x", "!!set {a, b}", "!!omap [a: 1]"),
                *("!!null {}", ".nan", ".inf", "9" * 5000, "9" * 30, "0x" + "f" * 5000, "'\\ud800", "{? [1] : 2}"),
                *("{? {a: 1} : 2}", "{1.5: a}", "{~: a}", "[" * 30 + "]" * 30, "[" * 5000, "{" * 5000, "[" * 10**5),
                *("!!str [a]", "!!map a", "!!seq a", "*nowhere", "&a [*a]", "&a {b: *a}", "{<<: [1]}", "{<<: a}"),
            )
        ),
        *(f"args: {{}}\n{key}: {'9' * 5000}" for key in ("size", "rate", "name")),
        *(f"args: {{}}\n{key}: 2020-01-01" for key in ("size", "rate", "name")),
        *(f"args: {{}}\nsize: {size}" for size in ("10000000000000000000000", "!!int '9x'", "!!python/name:os.x ''")),
        "args: {}\n? [1, 2]\n: 3",
        "args: {}\n---\nargs: {}",
        "args: {}\n%TAG ! x",
        "args: {}\x00",
        "a: &a [1]\nargs: {" + ", ".join(f"b{i}: &b{i} [*b{i - 1}, *b{i - 1}]" for i in range(1, 3)) + "}",
        "- &a0 [x]\n" + "".join(f"- &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)),
    ],
    ids=lambda text: repr(text[:40]),
)
def test_whatever_yaml_can_hold_is_plain_data_or_one_line(tmp_path, text):
    path = tmp_path / "free.yaml"
    path.write_text(text)
    with pytest.raises(FreproError) as error:
        Document.read(path).bind(Free)
    assert str(error.value).startswith(f"{path}:")
    assert str(error.value).isprintable()


def test_a_file_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "latin.yaml").write_bytes("name: ä".encode("latin-1"))
    for path in (tmp_path, tmp_path / "missing", tmp_path / "latin.yaml", tmp_path / "a\0b", tmp_path / ("x" * 5000)):
        with pytest.raises(FreproError) as error:
            Document.read(path)
        assert str(error.value).isprintable()


def test_overlay_keeps_lines_and_replaces_values(tmp_path):
    path = tmp_path / "two.yaml"
    path.write_text("base: {name: x, rate: 1}\nover:\n  rate: 2\n  kind: z\n")
    parts = {key: value for key, (_, value) in Document.read(path).items().items()}
    with pytest.raises(FreproError, match=r"two\.yaml:4: expected one of"):
        parts["base"].overlaid(parts["over"]).bind(Whole)
