"""Tables of benchmark results for a terminal and for the book. All rounding is here."""

from collections.abc import Sequence

from frepro.bench import scaling
from frepro.bench.results import (
    BESIDE,
    LEAST_SPEEDUP,
    MACHINE,
    OURS,
    PARTS,
    PEER,
    PEERS,
    PRODUCTS,
    REFERENCE,
    Found,
    Line,
    Ratio,
)
from frepro.report import NOT_RUN, View

TITLES = {REFERENCE: "the PyTorch reference", BESIDE: "the code given by --beside", "mamba_ssm": "mamba-ssm"}


def against_title(name: str) -> str:
    return TITLES.get(name, name)


def picture_of_models(variant: str) -> str:
    """Return the name of the figure of a variant's models."""
    return "models" if variant == "float32" else f"models_{variant.replace(' ', '_')}"


def peak_rates(found: Found) -> tuple[float, float]:
    """Return the measured peak rates of the machine: bytes per second of a copy, operations per second of a product."""
    copies = [rate for line in found.section("operations", name="copy") if (rate := line.bytes_per_second)]
    products = [
        rate
        for line in found.section("operations", work="forward")
        if line.name in ("matrix_product", "linear") and (rate := line.flops_per_second)
    ]
    return max(copies), max(products)


def models(found: Found, variant: str = "float32") -> View:
    """Return images per second of every model, and the speed-up of frepro's over reference, peer and other code.

    For the latency, it is the milliseconds of one image.
    """
    lines = [line for line in found.section("models", variant=variant) if line.side != REFERENCE]
    works = list(dict.fromkeys(line.work for line in lines))
    ratios = {
        (r.name, r.side, r.work, r.against): r for r in found.ratios if r.section == "models" and r.variant == variant
    }
    against = {against for *_, against in ratios}
    columns = ["reference"] * (REFERENCE in against) + ["peer"] + ["beside"] * (BESIDE in against)
    headings = [("", "model")]
    for work in works:
        unit = "ms for one image" if work == "latency" else "images/s"
        headings += [(work, unit), *((work, f"× {column}") for column in columns)]
    rows = []
    for name, side in dict.fromkeys((line.name, line.side) for line in lines):
        cells = [name if side != BESIDE else f"{name} (beside)"]
        for work in works:
            (line,) = [x for x in lines if (x.name, x.side, x.work) == (name, side, work)]
            cells.append(_milliseconds(line) if work == "latency" else _rate(line.images_per_second))
            others = {"reference": REFERENCE, "peer": PEERS.get(name, ""), "beside": BESIDE}
            cells += [_times(ratios.get((name, side, work, others[column]))) for column in columns]
        rows.append(cells)
    notes = ["× peer: speed-up over " + _peers(rows) + "."]
    if "reference" in columns:
        notes.insert(0, "× reference: speed-up over the same model with plain PyTorch operations.")
    return View(headings, rows, [*notes, *_missing(lines)])


def _peers(rows: Sequence[Sequence[str]]) -> str:
    """Return each peer with the models that are compared with it."""
    used: dict[str, list[str]] = {}
    for name, *_ in rows:
        if name in PEERS:
            used.setdefault(PEERS[name], []).append(name)
    return "; ".join(f"{peer} for {', '.join(names)}" for peer, names in used.items())


def parts(found: Found) -> View:
    """Return the milliseconds of inference in each part of a model, and the share that its matrix products must take.

    For frepro's models, the last columns are the speed-up over others if only the matrix products took time.
    """
    lines = found.section("parts")
    times = {(line.name, line.side, line.work): line.seconds for line in lines if line.seconds is not None}
    models = list(dict.fromkeys((line.name, line.side) for line in lines))
    totals = {model: sum(times[*model, part] for part in PARTS) for model in models}
    has_beside = any(side == BESIDE for _, side in models)
    headings = [("", "model"), *(("milliseconds in", part) for part in PARTS), ("milliseconds in", "all")]
    floors = _floors(found)
    headings += [("floor", "% of all")]
    headings += [("products alone", f"× {other}") for other in ["peer"] + ["beside"] * has_beside]
    rows = []
    for name, side in models:
        spent = [*(times[name, side, part] for part in PARTS), totals[name, side]]
        others = [(PEERS.get(name, ""), PEER), (name, BESIDE)][: 1 + has_beside]
        ceilings = [
            totals[other] / times[name, OURS, PRODUCTS] if side == OURS and other in totals else None
            for other in others
        ]
        floor = floors.get((name, side))
        rows.append(
            [name if side != BESIDE else f"{name} (beside)", *(f"{1e3 * value:.0f}" for value in spent)]
            + ["" if floor is None else f"{100 * floor / totals[name, side]:.0f}"]
            + ["" if ceiling is None else f"{ceiling:.2f}" for ceiling in ceilings]
        )
    notes = [
        "floor: the time that the model's matrix products (linear layers, 1 × 1 convolutions, attention) would take at "
        "the rate of the fastest product measured in the same run, in per cent of the whole time."
    ]
    return View(headings, rows, notes if floors else [])


def _floors(found: Found) -> dict[tuple[str, str], float]:
    """Return the seconds of each model's matrix products at the measured peak rate, by name and side.

    It is empty if no product was measured, as in a partial run.
    """
    if not found.section("operations", name="matrix_product"):
        return {}
    _, rate = peak_rates(found)
    products = found.section("parts", work=PRODUCTS)
    return {(line.name, line.side): line.flops / rate for line in products if line.flops is not None}


def operations(found: Found) -> View:
    """Return the milliseconds of the reference and of frepro's operations, and the speed-up.

    A note says which operations are slower than their reference.
    """
    lines = [line for line in found.section("operations") if line.side != MACHINE]
    works = list(dict.fromkeys(line.work for line in lines))
    ratios = {(r.name, r.size, r.work, r.side, r.against): r for r in found.ratios if r.section == "operations"}
    others = [s for s in dict.fromkeys(line.side for line in lines) if s not in (REFERENCE, OURS)]
    headings = [("", "operation"), ("", "size")]
    for work in works:
        headings += [(work, "reference (ms)"), (work, "ours (ms)"), (work, "times as fast")]
        headings += [(work, f"{side} (ms)") for side in others]
    rows = []
    for name, size in dict.fromkeys((line.name, line.size) for line in lines):
        cells = [name, size]
        for work in works:
            by_side = {line.side: line for line in lines if (line.name, line.size, line.work) == (name, size, work)}
            cells += [_milliseconds(by_side.get(side)) for side in (REFERENCE, OURS)]
            cells.append(_times(ratios.get((name, size, work, OURS, REFERENCE))))
            cells += [_milliseconds(by_side.get(side)) for side in others]
        rows.append(cells)
    return View(headings, rows, [_below(list(ratios.values())), *_missing(lines)])


def _below(ratios: Sequence[Ratio]) -> str:
    """Return a sentence on the operations whose speed-up over their reference is below ``LEAST_SPEEDUP``."""
    mine = [ratio for ratio in ratios if ratio.side == OURS and ratio.against == REFERENCE]
    below = [f"{r.name}, {r.size}, {r.work}: {_times(r)}" for r in mine if r.ratio < LEAST_SPEEDUP]
    limit = f"with a median below {LEAST_SPEEDUP} times its speed"
    if not below:
        return f"No operation is slower than its reference ({limit}): {len(mine)} were compared."
    return f"Slower than the reference ({limit}): {'; '.join(below)}."


def roofline(found: Found) -> View:
    """Return a roofline table of the operations.

    It has the bytes that an operation must move and the operations that it must compute, the minimum time for these at
    the peak rates of the machine, and the fraction of this limit that frepro and the reference reach.
    """
    bandwidth, rate = peak_rates(found)
    rows = []
    for line in found.section("operations", side=OURS, work="forward"):
        (reference,) = found.section("operations", side=REFERENCE, work="forward", name=line.name, size=line.size)
        assert line.bytes is not None
        assert line.flops is not None
        by_memory, by_products = line.bytes / bandwidth, line.flops / rate
        least = max(by_memory, by_products)
        shares = [f"{100 * least / x.seconds:.0f}" if x.seconds else NOT_RUN for x in (reference, line)]
        limit = "memory" if by_memory >= by_products else "products"
        cells = [f"{line.bytes / 1e6:.1f}", f"{line.flops / 1e6:.0f}", limit, f"{1e3 * least:.2f}", *shares]
        rows.append([line.name, line.size, *cells])
    headings = [("", "operation"), ("", "size"), ("must", "move (MB)"), ("must", "compute (10⁶)")]
    headings += [("at least", "for"), ("at least", "ms"), ("% of the limit", "reference"), ("% of the limit", "ours")]
    notes = [
        f"Measured in the same run: a copy moves {bandwidth / 1e9:.1f} GB/s (reads and writes); the fastest matrix "
        f"product computes {rate / 1e9:.0f} · 10⁹ operations per second. Each input and output counts once. Data that "
        "stays in the caches between calls moves faster than in a copy, so that values above 100 % are possible."
    ]
    return View(headings, rows, notes)


def resolution(found: Found) -> View:
    """Return images per second and peak memory at each resolution."""
    lines = found.section("resolution")
    sizes = list(dict.fromkeys(line.size for line in lines))
    headings = [("", "model"), *(("images/s at", f"{size}") for size in sizes)]
    headings += [("peak memory (MiB) at", size) for size in sizes]
    rows = []
    for name in dict.fromkeys(line.name for line in lines):
        by_size = {line.size: line for line in lines if line.name == name}
        rates = [by_size[size].images_per_second for size in sizes]
        peaks = [by_size[size].peak_mib for size in sizes]
        rows.append([name, *map(_rate, rates)] + [NOT_RUN if peak is None else f"{peak:.0f}" for peak in peaks])
    return View(headings, rows, _missing(lines))


def vim(found: Found) -> View:
    """Return the speed-up of Vim over DeiT-Ti, milliseconds and peak memory at each resolution."""
    lines = scaling.only(found, scaling.VIM).section("resolution")
    sizes = list(dict.fromkeys(line.size for line in lines))
    ratios = {(r.name, r.size): r for r in found.ratios if r.section == "resolution"}
    headings = [("", "model")]
    headings += [(f"× {scaling.DEIT} at", size) for size in sizes]
    headings += [("milliseconds at", size) for size in sizes]
    headings += [("peak memory (MiB) at", size) for size in sizes]
    rows = []
    for name in dict.fromkeys(line.name for line in lines):
        by_size = {line.size: line for line in lines if line.name == name}
        speedups = [ratio and f"{ratio.ratio:.2f}" for ratio in (ratios.get((name, size)) for size in sizes)]
        peaks = [by_size[size].peak_mib for size in sizes]
        milliseconds = [_milliseconds(by_size[size], 0) for size in sizes]
        rows.append(
            [name, *(speedup or "" for speedup in speedups), *milliseconds]
            + [NOT_RUN if peak is None else f"{peak:.0f}" for peak in peaks]
        )
    notes = [f"{name} against {scaling.DEIT}: {verdict}." for name, verdict in vim_verdicts(found).items()]
    return View(headings, rows, [*notes, *_missing(lines)])


def vim_verdicts(found: Found) -> dict[str, str]:
    """Return for each Vim model from which resolution on it is faster than DeiT-Ti, in words."""
    return {
        name: scaling.overtakes(outcomes)
        for name in scaling.VIM
        if PEERS.get(name) == scaling.DEIT and (outcomes := scaling.faster(found, name, scaling.DEIT))
    }


def shares(found: Found, quantity: str) -> View:
    """Return throughput or memory as a multiple of ConvFormer's at the resolutions that all models have in common.

    The last columns are the change of this multiple, and whether it is smaller than for the model with attention.
    """
    by_model = scaling.shares(found, quantity)
    sizes = sorted(set.intersection(*(set(by_size) for by_size in by_model.values())))
    changes = {name: scaling.change(by_size[sizes[0]], by_size[sizes[-1]]) for name, by_size in by_model.items()}
    multiple, last = f"{quantity} as a multiple of {scaling.BASE}'s at", f"{sizes[-1]} over {sizes[0]}"
    headings = [("", "model"), *((multiple, str(size)) for size in sizes)]
    headings += [("change", last), ("change", f"closer than {scaling.ATTENTION}")]
    rows = []
    for name, by_size in by_model.items():
        compared = name not in (scaling.BASE, scaling.ATTENTION) and scaling.ATTENTION in changes
        verdict = scaling.stays_closer(changes[name], changes[scaling.ATTENTION], quantity) if compared else ""
        rows.append([name, *(f"{by_size[size].value:.2f}" for size in sizes), _range(changes[name]), verdict])
    return View(headings, rows, [])


def slower(found: Found) -> View:
    """Return the comparisons in which frepro is slower, with a remark if it is not slower in all rounds."""
    rows = [
        [r.name, r.size, r.work, against_title(r.against), _times(r), "" if r.high < 1 else "not in all rounds"]
        for r in sorted(found.ratios, key=lambda r: r.ratio)
        if r.side == OURS and r.ratio < 1
    ]
    names = ("what", "size", "work", "compared with", "times as fast", "")
    return View([("", name) for name in names], rows, [])


def _rate(rate: float | None) -> str:
    """Format a rate with about three significant digits."""
    return NOT_RUN if rate is None else f"{rate:.{3 if rate < 0.1 else 2 if rate < 10 else 1}f}"


def _times(ratio: Ratio | None) -> str:
    """Format the median of a ratio and its range."""
    return "" if ratio is None else f"{ratio.ratio:.2f} ({ratio.low:.2f}–{ratio.high:.2f})"


def _range(share: scaling.Share) -> str:
    if share.limits is None:
        return f"{share.value:.2f}"
    low, high = share.limits
    return f"{share.value:.2f} ({low:.2f}–{high:.2f})"


def _milliseconds(line: Line | None, decimals: int = 2) -> str:
    if line is None:
        return ""
    return NOT_RUN if line.seconds is None else f"{1e3 * line.seconds:.{decimals}f}"


def _missing(lines: Sequence[Line]) -> list[str]:
    return [f"{line.name}, {line.size}, {line.work}, {line.side}: {line.note}" for line in lines if line.note]
