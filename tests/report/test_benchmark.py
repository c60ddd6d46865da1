"""Tables of the benchmark, of rounds that are made up so that the answer is known."""

import pytest

from frepro.bench.results import BESIDE, MACHINE, OURS, PARTS, PEER, PRODUCTS, REFERENCE, Found, Key, line
from frepro.report import benchmark


def found(*entries) -> Found:
    """From (section, name, size, variant, work, side), seconds of each round, and facts of each row."""
    rows = [(Key(*key), seconds, facts) for key, seconds, facts in entries]
    lines = [line(key, seconds, **facts) for key, seconds, facts in rows]
    return Found(lines, {key: seconds for key, seconds, _ in rows}, {})


def operation(name, side, seconds, work="forward", **facts):
    return ("operations", name, "n", "float32", work, side), seconds, {"flops": 4_000_000, "bytes": 2_000_000, **facts}


def test_operations_slower_than_their_reference_are_named():
    slow = [operation("gelu", REFERENCE, [1.0, 0.9, 1.0]), operation("gelu", OURS, [1.1, 1.0, 1.0])]
    as_fast = [operation("linear", REFERENCE, [1.0] * 3), operation("linear", OURS, [1.03] * 3)]
    other_code = [operation("linear", BESIDE, [2.0] * 3)]
    note = benchmark.operations(found(*slow, *as_fast, *other_code)).notes[0]
    assert note.startswith("Slower than the reference")
    assert "gelu, n, forward: 0.91 (0.90–1.00)" in note
    assert "linear" not in note
    note = benchmark.operations(found(*as_fast, *other_code)).notes[0]
    assert note.startswith("No operation is slower than its reference")
    assert note.endswith(": 1 were compared.")


def parts(name, side, flops=None):
    for part in PARTS:
        key = ("parts", name, "n", "float32", part, side)
        yield key, [0.5 if part == PRODUCTS else 0.125], {"flops": flops if part == PRODUCTS else None}


def test_the_floor_is_the_products_at_the_measured_rate():
    machine = [operation("copy", MACHINE, [0.002]), operation("matrix_product", OURS, [0.001])]  # 4 GFLOPs a second
    models = [*parts("vim_tiny", OURS, 1_000_000_000), *parts("vim_tiny", BESIDE)]
    view = benchmark.parts(found(*machine, *models))
    columns = [lower for upper, lower in view.headings if upper == "floor"]
    ours, beside = ([cell for cell, (upper, _) in zip(row, view.headings, strict=True) if upper == "floor"]
                    for row in view.rows)  # fmt: skip
    assert (columns, ours, beside) == (["% of all"], ["25"], [""])
    assert "the rate of the fastest product measured" in view.notes[0]
    without = benchmark.parts(found(*models))  # of a partial run
    assert without.notes == []
    assert [row[7] for row in without.rows] == ["", ""]


def test_latency_is_in_milliseconds_and_a_variant_has_its_own_works():
    def model(name, side, variant, work, size, seconds, images):
        return ("models", name, size, variant, work, side), seconds, {"images": images}

    entries = [
        model(name, side, "float32", work, size, [seconds, seconds], images)
        for name, side, seconds in (("vim_tiny", OURS, 0.5), ("vim_tiny", REFERENCE, 4.0),
                                    ("deit_tiny_patch16_224", PEER, 1.0))
        for work, size, images in (("inference", "8 × n", 8), ("latency", "1 × n", 1))
    ]  # fmt: skip
    entries += [
        model(name, side, "float32 compiled", "inference", "8 × n", [seconds, seconds], 8)
        for name, side, seconds in (("vim_tiny", OURS, 0.25), ("deit_tiny_patch16_224", PEER, 0.5))
    ]
    results = found(*entries)
    view = benchmark.models(results)
    assert view.headings[4] == ("latency", "ms for one image")
    speedups = ["8.00 (8.00–8.00)", "2.00 (2.00–2.00)"]
    assert view.rows[0] == ["vim_tiny", "16.0", *speedups, "500.00", *speedups]
    compiled = benchmark.models(results, "float32 compiled")
    assert compiled.headings == [("", "model"), ("inference", "images/s"), ("inference", "× peer")]
    assert compiled.rows[0] == ["vim_tiny", "32.0", "2.00 (2.00–2.00)"]


@pytest.mark.parametrize("instruction_set", [None, "AVX2"])
def test_a_machine_is_named_with_its_instruction_set(instruction_set):
    made = {"device": {"name": "a machine"}, "kernels": instruction_set and {"instruction_set": instruction_set}}
    assert Found([], {}, made).machine == ("a machine, AVX2" if instruction_set else "a machine")
