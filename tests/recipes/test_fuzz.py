"""Recipes damaged at random from a seed: each is read, or refused in one line."""

import os
import random
from pathlib import Path

import pytest

from frepro import recipes
from frepro.errors import FreproError

FILES = 200
FOLDER = Path(recipes.__file__).parent
PIECES = [
    *("0", "-1", "1e999", ".nan", "9" * 5000, "0x10", "1_000", "1:30", "null", "yes", "''", '"\\ud800"', "é", "\0"),
    *("2020-01-01", "2020-99-99", "[]", "{}", "[" * 5000, "{a: " * 50, "&a [*a]", "*a", "<<: {a: 1}", "? [1]", "? {}"),
    *("!!python/object/apply:os.system [touch F]", "!!binary x", "!!set {a}", "!!timestamp x", "!!int x", "!x y", "|"),
    *(
        "---",
        "...",
        "\t",
        "%YAML 9.9",
        "- a",
        ": :",
        "#",
        "'",
        "base: vim-f",
        "differs: [a]",
        "paper: {}",
        "by_model: {x: 1}",
    ),
]


def damaged(rng: random.Random) -> bytes:
    """The text of a recipe with one to three pieces of it replaced, removed or doubled."""
    text = (FOLDER / f"{rng.choice(recipes.names())}.yaml").read_text(encoding="utf-8")
    for _ in range(rng.randint(1, 3)):
        lines = text.splitlines()
        number = rng.randrange(len(lines))
        key, colon, _ = lines[number].partition(":")
        match rng.randrange(6):
            case 0 | 1 | 2:
                lines[number] = f"{key}{colon} {rng.choice(PIECES)}"
            case 3:
                lines[number] = " " * rng.randint(0, 6) + lines[number].strip()
            case 4:
                lines.insert(number, lines[rng.randrange(len(lines))])
            case 5:
                del lines[number]
        text = "\n".join(lines) or "a"
    content = bytearray(text.encode("utf-8"))
    if rng.random() < 0.3:
        content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content[: rng.randrange(len(content))] if rng.random() < 0.1 else content)


def test_damaged_recipes_are_read_or_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "r.yaml"
    refused = 0
    for seed in range(FILES):
        rng = random.Random(seed)
        path.write_bytes(damaged(rng))
        try:
            recipes.read(path, rng.choice(recipes.PROFILES))
        except FreproError as error:
            refused += 1
            said = str(error)
        else:
            continue
        assert said.isprintable(), (seed, said)
    assert refused > FILES // 4
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["fifo", "folder", "loop"])
def test_a_path_that_is_no_file_is_refused_at_once(kind, tmp_path):
    path = tmp_path / "r.yaml"
    {"fifo": os.mkfifo, "folder": Path.mkdir, "loop": lambda path: path.symlink_to(path)}[kind](path)
    with pytest.raises(FreproError, match="cannot read"):
        recipes.load(str(path), "smoke")
