"""Parameters and multiply-accumulates of models, as tables."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from frepro import papers
from frepro.report.view import View, cell, mark

if TYPE_CHECKING:  # tables do not depend on the code that counts sizes
    from frepro.analysis.sizes import Size, VimFlops


COUNTED = (
    "Multiply-accumulates at 224 pixels, which the papers call FLOPs: those of convolutions, linear layers and "
    "attention, and 5 for each element of a norm that is a norm layer in the official code, as fvcore counts them."
)


WITH_SPECTRA = (
    "Including FFTs and scans, which FLOP counters ignore. Two real operations count as one multiply-accumulate: "
    "5 n log2(n) for an FFT of n complex points and half of it for real ones; 6 for a product of complex numbers, 2 "
    "for one with a real number, 4 for a modulus; 9 L D N + 2 L D for a scan of L steps, D channels and N state "
    "values per channel."
)


def sizes(models: Sequence["Size"]) -> View:
    """Return parameters and multiply-accumulates of models, next to the published values if there are any."""
    printed = {size.model: _printed(size.model) for size in models}
    is_printed = any(printed.values())
    headings = [("", "Model"), ("", "blocks"), ("", "channels")]
    for name in ("Parameters (M)", "FLOPs (G)*"):
        headings += [(name, "paper"), (name, "ours")] if is_printed else [(name, "ours")]
    headings.append(("FLOPs (G)*", "in all**"))
    rows, notes = [], [COUNTED, WITH_SPECTRA]  # for the marks in the headings
    for size in models:
        params, flops, note = printed[size.model] or ("", "", None)
        ours = [f"{size.params / 1e6:.2f}", f"{size.macs / 1e9:.2f}"]
        if note:
            ours[1] += mark(note, notes)
        cells = [params, ours[0], flops, ours[1]] if is_printed else ours
        rows.append([size.model, size.blocks, size.channels, *cells, f"{size.all_macs / 1e9:.2f}"])
    return View(headings, rows, notes)


def _printed(model: str) -> tuple[str, str, str | None] | None:
    """Return published parameters and FLOPs, and a note: from the paper of the model, or else from the first one."""
    found = []
    for paper in map(papers.load, papers.names()):
        for table in paper.tables.values():
            row, params, flops = table.row(model), table.column("params"), table.column("flops")
            if row is not None and params is not None and flops is not None:
                texts = [cell(table.value(row, column.key), column.decimals) for column in (params, flops)]
                found.append((("ours" not in row.marks, not all(texts)), (texts[0], texts[1], row.note)))
    return min(found, key=lambda item: item[0])[1] if found else None


def vim_flops(counts: Sequence["VimFlops"]) -> View:
    """Return the multiply-accumulates of Vision Mamba by several ways of counting, with the published values."""
    models = list(dict.fromkeys(count.model for count in counts))
    by_way = {(count.model, count.counting): count.macs for count in counts}
    rows = [
        [way, *(f"{by_way[model, way] / 1e9:.2f}" for model in models)]
        for way in dict.fromkeys(count.counting for count in counts)
    ]
    printed = [_printed(model) for model in models]
    if any(printed):
        rows.append(["printed", *(found[1] if found else "" for found in printed)])
    return View([("", "FLOPs (G)"), *(("", model) for model in models)], rows, [])
