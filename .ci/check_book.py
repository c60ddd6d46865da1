"""Fail unless the built book has its pages, and the pages their tables and pictures."""

import re
import sys
from pathlib import Path

HOLDS = {
    "index.html": ["Vision backbones that learn in the frequency domain"],
    "reproduce.html": ["make reproduce PAPER=dfformer TABLE=4", "<dt>"],
    "dfformer/index.html": [
        "dynamic filter",
        "dfformer_filter.svg",
        "gfnet_block.svg",
        "<td>115</td><td>114.99</td>",
        "Counted 20",
    ],
    "spanet/index.html": ["spectral pooling", "spanet_spam.svg", "spanet_basex", "ring=None"],
    "spanetv2/index.html": ["SPAM mixer", "spanetv2_spam.svg", "spanetv2_b36_hybrid", "scaled_sigmoid=True"],
    "vim-f/index.html": ["amplitude spectrum", "vimf_scan.svg", "vim_mamba.svg", "as LocalMamba", "shift_batch=False"],
    "performance.html": ["make bench", "star_relu", "On a GPU", "not run"],
    "results/status.html": ["Table 4", "Figure 9", "demo", "not run"],
    "results/spanetv2/figure_1.html": ["cut-off on the grid", "<img", "Where this comes from", "frepro.analysis.graph"],
    "results/spanet/figure_4.html": ["no test of the claim", "<img", "random initialisation"],
    "results/dfformer/table_4.html": [
        'class="frepro"',
        "StarReLU, DF → ReLU, AFNO",
        "textured test top-1",
        "<img",
        "Where these numbers come from",
    ],
}


def main(folder: Path) -> int:
    faults = []
    for page, texts in HOLDS.items():
        path = folder / page
        if not path.exists():
            faults.append(f"{page} is missing")
            continue
        html = path.read_text(encoding="utf-8")
        words = " ".join(re.sub(r"<[^>]+>", "", html).split())  # code is cut into a tag for each word
        faults += [f"{page} does not hold {text!r}" for text in texts if text not in html and text not in words]
    print("\n".join(faults) or f"the book holds what it should: {len(HOLDS)} pages")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
