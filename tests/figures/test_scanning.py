"""The picture of the scan holds spectra that a move leaves alike, and patches that it does not."""

import torch

from frepro import figures
from frepro.analysis.translation import Translation


def test_scanning():
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(4, 4, 8, generator=generator)
    pictures = torch.rand(2, 3, 8, 8, generator=generator)
    found = Translation((4, 2), pictures, torch.stack([first, first.roll((2, 1), dims=(0, 1))]))
    figure = figures.scanning(found, pictures)
    shown = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    spectra = [torch.as_tensor(axes.images[0].get_array()) for axes in shown[1::3]]
    assert torch.allclose(spectra[0], spectra[1], atol=1e-5)
    patches, spectrum = (float(axes.get_title().split(": ")[1].split()[0]) for axes in shown[2::3])
    assert patches > 50 > 1e-3 > spectrum
    path = shown[0].lines[0]
    assert list(path.get_xdata()[:5]) == [0.5, 2.5, 4.5, 6.5, 0.5]  # row by row, through the middle of each patch
