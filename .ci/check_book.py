"""Fail unless the built book has its pages, the pages their tables and pictures, and none of them complains.

On every page: no error, warning or output to stderr; each picture there and described; no table without content; and
nothing that a browser would load from elsewhere.
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

HOLDS = {
    "index.html": ["Vision backbones that learn in the frequency domain", 'class="frepro"', "front.png"],
    "audit.html": ["Whose spectrum an image gets", "sees a change in images [0, 1]", "SPANetV2"],
    "data.html": ["Digits", "undecided"],
    "howto/cluster.html": ["torchrun", "FREPRO_RESULTS"],
    "howto/add_a_model.html": ["boxformer"],
    "api.html": ["frepro.models"],
    "results/api/frepro.models.html": ["frepro.models.dfformer.DynamicFilter", "Size of the scan"],
    "results/api/frepro.ops.html": ["frepro.ops.spectral.dynamic_filter", "F^-1"],
    "glossary.html": ["relative log amplitude"],
    "bibliography.html": ["Tatsunami", "Guhnoo Yun"],
    "reproduce.html": ["make reproduce PAPER=dfformer TABLE=4", "<dt>"],
    "dfformer/index.html": [
        "dynamic filter",
        "dfformer_filter.svg",
        "gfnet_block.svg",
        "<td>115</td><td>114.99</td>",
        "Counted 20",
        "sizes.csv",
    ],
    "spanet/index.html": ["spectral pooling", "spanet_spam.svg", "spanet_basex", "ring=None"],
    "spanetv2/index.html": ["SPAM mixer", "spanetv2_spam.svg", "spanetv2_b36_hybrid", "scaled_sigmoid=True"],
    "vim-f/index.html": ["amplitude spectrum", "vimf_scan.svg", "vim_mamba.svg", "as LocalMamba", "shift_batch=False"],
    "performance.html": ["make bench", "star_relu", "On a GPU", "not run"],
    "results/status.html": ["Table 4", "Figure 9", "demo", "not run"],
    "results/spanetv2/figure_1.html": ["cut-off on the grid", "<img", "Where this comes from", "frepro.analysis.graph"],
    "results/spanet/figure_4.html": ["no test of the claim", "<img", "random initialisation"],
    "results/spanet/table_3.html": ["95 % interval", "disagrees"],
    "results/dfformer/table_4.html": [
        'class="frepro"',
        "StarReLU, DF → ReLU, AFNO",
        "textured test top-1",
        "<img",
        "Where these numbers come from",
        "dfformer_table_4_findings.csv",
    ],
}

# Classes that Sphinx and myst-nb give to what went wrong.
COMPLAINTS = {"system-message", "problematic", "stderr", "traceback"}
LOADING = {"stylesheet", "icon", "preload", "modulepreload", "prefetch", "preconnect", "dns-prefetch"}


class Page(HTMLParser):
    """Collects the faults of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.faults: list[str] = []
        self.tables: list[list[str]] = []  # text of the data cells of each table that is open
        self.in_cell = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        for name in COMPLAINTS & set(given.get("class", "").split()):
            self.faults.append(f"an element of class {name}")
        address = given.get("src", "")
        if tag == "link" and LOADING & set(given.get("rel", "").split()):
            address = given.get("href", "")
        if re.match(r"(https?:)?//", address):
            self.faults.append(f"loads {address}")
        elif tag == "img":
            self._picture(address, given.get("alt", ""))
        if tag == "table":
            self.tables.append([])
        self.in_cell = tag == "td" or (self.in_cell and tag != "th")
        if tag == "td" and self.tables:
            self.tables[-1].append("")

    def _picture(self, address: str, alt: str) -> None:
        if not address.startswith("data:") and not (self.path.parent / address.partition("?")[0]).is_file():
            self.faults.append(f"picture {address} is missing")
        if not alt.strip():
            self.faults.append(f"picture {address} has no alternative text")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.in_cell = False
        if tag == "table" and not any(text.strip() for text in self.tables.pop()):
            self.faults.append("an empty table")

    def handle_data(self, data: str) -> None:
        if self.in_cell and self.tables and self.tables[-1]:
            self.tables[-1][-1] += data


def faults(folder: Path) -> list[str]:
    """What is wrong with the book in a folder, a line each."""
    found = []
    for page, texts in HOLDS.items():
        path = folder / page
        if not path.exists():
            found.append(f"{page} is missing")
            continue
        html = path.read_text(encoding="utf-8")
        words = " ".join(re.sub(r"<[^>]+>", "", html).split())  # code is cut into a tag for each word
        found += [f"{page} does not hold {text!r}" for text in texts if text not in html and text not in words]
    for path in sorted(folder.rglob("*.html")):
        page = path.relative_to(folder)
        if page.parts[0] != "_static":
            found += [f"{page}: {fault}" for fault in Page(path).faults]
    return found


def main(folder: Path) -> int:
    found = faults(folder)
    print("\n".join(found) or f"the book holds what it should, and no page has a fault: {len(HOLDS)} pages looked into")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
