"""Hostile command lines, made at random from a seed: each ends in one line and a non-zero status, and does nothing."""

import json
import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from frepro.cli.main import main

CALLS = 200

TEXTS = [
    *(
        "",
        " ",
        "-",
        "--",
        "x" * 5000,
        "../..",
        "/",
        "\udcff",
        "a\nb",
        "a\0b",
        "\x1b[31m",
        "\u202e",
        "é",
        "💥",
        "*",
        "[",
    ),
    *("$(touch F)", "'; touch F; '", "`touch F`", "%s%n", "{0}", "<script>", "null", "None", "nan", "-1", "1e999"),
    *("9" * 5000, "0x10", "1_000", "٣", "[]", "{}", "[" * 50_000, '{"a":' * 50_000, '"\\ud800"', "true"),
]
NUMBERS = [
    "",
    "x",
    "-1",
    "-99999999999999999999",
    "1.5",
    "1e3",
    "nan",
    "inf",
    "9" * 5000,
    "0 0",
    "--1",
    "[1]",
    "\udcff",
    "½",
]
PATHS = [
    "missing",
    "x" * 5000,
    "/".join(["x" * 200] * 30),
    "a\0b",
    "text.txt/below",
    "loop",
    "/dev/null/x",
    "\udcff",
    "fifo",
]
FILES = [*PATHS, ".", "text.txt", "empty.safetensors", "code.pth", "random.safetensors", "half.json", "/dev/null"]

TRAIN = {
    "--model": [text for text in TEXTS if text] + ["dfformer_s81", "hf_hub:timm/x", "local-dir:."],
    "--recipe": [*TEXTS, "detection", "dfformer.yaml"],
    "--profile": [*TEXTS, "papers", "Demo"],
    "--data": [*PATHS, "text.txt", ".", ",", "digits,", "torch/cifar10", "torch/:.", "tfds/x:.", "scenes"],
    "--device": [*TEXTS, "cuda:99", "meta", "mps"],
    "--per-device": [*NUMBERS, "0"],
    "--workers": [*NUMBERS, "100000"],
}
CHOICE = {
    "--paper": [text for text in TEXTS if text] + ["DFFormer"],
    "--table": [*NUMBERS, "0", "99"],
    "--figure": [*NUMBERS, "0", "99"],
    "--profile": [*TEXTS, "papers"],
    "--data": [*PATHS, ",", "digits,", "torch/:."],
    "--seeds": [*NUMBERS, "0", "1000000000", "0,0", ",", "0,-1"],
    "--checkpoint": FILES,
    "--device": [*TEXTS, "meta"],
    "--per-device": [*NUMBERS, "0"],
    "--workers": [*NUMBERS, "100000"],
}
LINE_BREAKS = ["a\nb", "\n#SBATCH --wrap=x", "a\rb", "a\0b", "\x1b[31m"]
COMMANDS: dict[tuple[str, ...], tuple[dict[str, str], dict[str, list[str]]]] = {
    ("train",): (
        {"--model": "dfformer_s18", "--profile": "smoke", "--device": "cpu", "--data": "digits"},
        TRAIN
        | {"--seed": NUMBERS, "--backbone": FILES, "--checkpoint-every": [*NUMBERS, "0"]}
        | {"--damaged": [*TEXTS, "Skip"]},
    ),
    ("eval",): (
        {"--model": "dfformer_s18", "--profile": "smoke", "--device": "cpu", "--checkpoint": "random.safetensors"},
        TRAIN | {"--checkpoint": FILES},
    ),
    ("reproduce", "--dry-run"): (
        {"--paper": "dfformer", "--table": "4", "--profile": "smoke", "--device": "cpu"},
        CHOICE | {"--jobs": [*NUMBERS, "0", "100000"]},
    ),
    ("submit", "--dry-run"): (
        {"--paper": "dfformer", "--table": "4", "--profile": "smoke", "--device": "cpu"},
        CHOICE
        | dict.fromkeys(("--partition", "--account", "--mem"), LINE_BREAKS)
        | {key: [*NUMBERS, "0"] for key in ("--nodes", "--tasks", "--cpus", "--at-once")}
        | {"--gpus": [*TEXTS, *LINE_BREAKS], "--time": [*NUMBERS[:5], *LINE_BREAKS, "1:2:3:4"], "--requeues": NUMBERS},
    ),
    ("bench", "--smoke"): (
        {"--device": "cpu", "--only": "nothing"},
        {"--only": ["[", "\n", "x" * 5000], "--rounds": [*NUMBERS, "0"], "--beside": FILES, "--device": ["tpu"]},
    ),
    ("replay",): ({"": "."}, {"": FILES, "--device": ["tpu"]}),
    ("convert", "dfformer_s18"): (
        {"": "code.pth out.safetensors"},
        {"": [f"{file} out.safetensors" for file in FILES]},
    ),
    ("data", "check"): ({"": "missing"}, {"": FILES}),
    ("data", "export", "out"): (
        {"--format": "coco", "--count": "0 0"},
        {"--format": TEXTS, "--count": ["-1 5", "0 0", "1", "x y", "9" * 5000 + " 1"], "--seed": NUMBERS}
        | {"--size": [*NUMBERS, "31", "1000000000"]},
    ),
}


def call(rng: random.Random) -> list[str]:
    """A command with one to three values that cannot be."""
    command = rng.choice(list(COMMANDS))
    valid, hostile = COMMANDS[command]
    spoiled = rng.sample(list(hostile), min(rng.randint(1, 3), len(hostile)))
    values = valid | {name: rng.choice(hostile[name]) for name in spoiled}
    words = [*command]
    for name, value in values.items():
        parts = value.split(" ") if name in ("", "--count") else [value]
        words += [name, *parts] if name else parts
    if command[0] in ("train", "eval", "reproduce", "submit") and rng.random() < 0.4:
        flag = "-a" if command[0] in ("train", "eval") else "-p"
        words += [flag, rng.choice(["nosuch", *TEXTS]), rng.choice([*TEXTS, json.dumps(nested(rng, 4))])]
    if rng.random() < 0.1:
        words.append(rng.choice(["--no-such", "--model", "-p", "stray", "\udcff"]))
    return words


def nested(rng: random.Random, depth: int) -> object:
    kind = rng.randrange(6 if depth else 4)
    if kind < 4:
        return [None, rng.uniform(-1e9, 1e9), rng.choice(["", "x", "é\n"]), rng.choice([True, 10**30, -1])][kind]
    parts = [nested(rng, depth - 1) for _ in range(rng.randint(0, 3))]
    return parts if kind == 4 else {str(number): part for number, part in enumerate(parts)}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Iterator[Path]:
    """A current folder with files that are none of what they seem."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    Path("text.txt").write_text("text\n")
    Path("half.json").write_text('{"a":')
    Path("empty.safetensors").touch()
    Path("random.safetensors").write_bytes(random.Random(0).randbytes(1000))
    Path("code.pth").write_bytes(b"cos\nsystem\n(S'touch F'\ntR.")
    Path("loop").symlink_to("loop")
    os.mkfifo("fifo")
    before = signal.getsignal(signal.SIGTERM)
    yield here
    signal.signal(signal.SIGTERM, before)  # main has changed it


@pytest.mark.parametrize("part", range(4))
def test_hostile_calls_end_in_one_line(part, folder, store, monkeypatch, capsys):
    before = sorted(folder.iterdir())
    for number in range(part, CALLS, 4):
        words = call(random.Random(number))
        monkeypatch.setattr(sys, "argv", ["frepro", *words])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        lines = said.err.splitlines()
        shown = [word[:60] for word in words]
        assert end.value.code not in (0, None), (number, shown)
        assert len(lines) == 1, (number, shown, said.err[-2000:])
        assert lines[0].startswith("frepro: error: "), (number, shown, lines)
        assert lines[0].isprintable(), (number, shown, lines)
    assert sorted(folder.iterdir()) == before
    assert {path.name for path in store.rglob("*") if path.is_file()} <= {".lock"}
