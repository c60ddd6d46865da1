"""Small data sets in MNIST's idx files, written by hand."""

import gzip
from pathlib import Path

import numpy as np

NAMES = {
    ("train", "images"): "train-images-idx3-ubyte",
    ("train", "labels"): "train-labels-idx1-ubyte",
    ("test", "images"): "t10k-images-idx3-ubyte",
    ("test", "labels"): "t10k-labels-idx1-ubyte",
}


def encoded(array: np.ndarray) -> bytes:
    """An array of unsigned bytes as an idx file."""
    lengths = b"".join(length.to_bytes(4, "big") for length in array.shape)
    return bytes((0, 0, 8, array.ndim)) + lengths + array.astype(np.uint8).tobytes()


def write(
    root: Path, labels: dict[str, list[int]], size: tuple[int, int] = (7, 5), packed: bool = False, dotted: bool = False
) -> dict[str, np.ndarray]:
    """Write images whose pixels count up, with the given labels of "train" and "test"; return the images of each."""
    root.mkdir(parents=True, exist_ok=True)
    images = {}
    for split, own in labels.items():
        count = len(own) * size[0] * size[1]
        start = 0 if split == "train" else 100
        images[split] = (np.arange(start, start + count) % 256).astype(np.uint8).reshape(len(own), *size)
        for kind, array in (("images", images[split]), ("labels", np.array(own))):
            name = NAMES[split, kind]
            name = name.replace("-idx", ".idx") if dotted else name
            content = encoded(array)
            (root / (name + ".gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)
    return images
