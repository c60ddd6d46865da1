import pytest
import torch

from frepro.ops.fourier import irfft2, rfft2


@pytest.mark.parametrize("shape", [(2, 7, 6, 3), (2, 8, 1, 3), (1, 56, 57, 2), (2, 1, 5), (2, 12, 10)])
def test_products_are_the_transforms(shape, monkeypatch):
    x = torch.randn(shape, dtype=torch.float64)
    half, whole = rfft2(x), rfft2(x, half=False)
    torch.testing.assert_close(torch.complex(*half), torch.fft.rfft2(x, dim=(1, 2), norm="ortho"))
    torch.testing.assert_close(irfft2(*half, shape[2]), x)
    other = tuple(torch.randn_like(part) for part in half)  # no transform of any map: its zero frequency is complex
    expected = irfft2(*other, shape[2])
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    torch.testing.assert_close(rfft2(x), half)
    torch.testing.assert_close(rfft2(x, half=False), whole)
    torch.testing.assert_close(irfft2(*half, shape[2]), x)
    torch.testing.assert_close(irfft2(*other, shape[2]), expected)
