"""Spectral operations: equal to NumPy, their gradients to differences, and what Fourier analysis says of them."""

import numpy as np
import pytest
import torch
from torch import Tensor

from frepro.ops import (
    amplitude_spectrum,
    dynamic_filter,
    global_filter,
    pooled_linear,
    resize_filter,
    spectral_pool,
    spectral_pooling_mask,
    spectral_rescale,
)
from tests.compiler import needs_compiler
from tests.dtypes import Transforms

SIZES = [(56, 56), (14, 14), (7, 7), (8, 12), (5, 3), (6, 9), (2, 2), (1, 1)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def arguments(height: int, width: int, dtype: torch.dtype = torch.float64) -> dict:
    """Each operation on a map and its other arguments, two images of three channels."""
    half = width // 2 + 1
    x = torch.randn(2, height, width, 3)
    every = {
        global_filter: (x, torch.randn(height, half, 3, 2)),
        dynamic_filter: (x, torch.randn(2, 4, 3), torch.randn(height, half, 4, 2)),
        spectral_rescale: (x, torch.rand(height, half, 3)),
        spectral_pool: (x, spectral_pooling_mask(height, width, 1, 0.7)),
        amplitude_spectrum: (x,),
    }
    return {op: tuple(x.to(dtype) for x in args) for op, args in every.items()}


OPS = list(arguments(1, 1))


# Each operation against its formula ----------------------------------------------------------------------------------


def as_complex(x: Tensor) -> np.ndarray:
    return x.numpy()[..., 0] + 1j * x.numpy()[..., 1]


def filtered(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    return np.fft.irfft2(np.fft.rfft2(x, axes=(1, 2)) * kernel, s=x.shape[1:3], axes=(1, 2))


def by_formula(op, x: Tensor, *rest: Tensor) -> np.ndarray:
    image = x.numpy()
    if op is global_filter:
        return filtered(image, as_complex(rest[0]))
    if op is dynamic_filter:
        return filtered(image, np.einsum("hwn,bnc->bhwc", as_complex(rest[1]), rest[0].numpy()))
    if op is spectral_rescale:
        return filtered(image, rest[0].numpy())
    if op is spectral_pool:  # eq. 17 of SPANet to the letter: the full transform, centred, masked and back
        centred = rest[0].numpy()[..., None] * np.fft.fftshift(np.fft.fft2(image, axes=(1, 2)), axes=(1, 2))
        pooled = np.fft.ifft2(np.fft.ifftshift(centred, axes=(1, 2)), axes=(1, 2))
        assert np.abs(pooled.imag).max() < 1e-12  # an even mask leaves a real map
        return pooled.real
    return np.abs(np.fft.fft2(image, axes=(1, 2))) / np.sqrt(image[0, ..., 0].size)  # eq. 7 of Vim-F, orthonormal


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("op", OPS)
def test_equals_its_formula(op, size):
    args = arguments(*size)[op]
    torch.testing.assert_close(op(*args), torch.from_numpy(by_formula(op, *args)))


@pytest.mark.parametrize("size", [(4, 6), (5, 3), (1, 2)])
@pytest.mark.parametrize("op", OPS)
def test_gradients(op, size):
    """Of every argument but the mask, which is fixed."""
    args = arguments(*size)[op]
    for x in args if op is not spectral_pool else args[:1]:
        x.requires_grad_()
    assert torch.autograd.gradcheck(op, args)


@pytest.mark.parametrize("backend", ["torch", "matmul"])
def test_gradients_of_pooling_and_a_linear_map(backend):
    x, bias = torch.randn(1, 5, 4, 3, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
    weights = [torch.randn(2, channels, dtype=torch.float64) for channels in (2, 1)]
    masks = [spectral_pooling_mask(5, 4, 1, balance).double() for balance in (0.7, 0.9)]
    inputs = [value.requires_grad_() for value in (x, *weights, bias)]
    assert torch.autograd.gradcheck(lambda x, v, w, b: pooled_linear(x, masks, 1, [v, w], b, backend=backend), inputs)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("op", [global_filter, dynamic_filter, spectral_rescale])
def test_kernels_equal_the_plain_form(op, size, dtype):
    """Values and all gradients; half precision is rounded at the end alone, wherever that is."""
    results = []
    for backend in ("torch", "cpu"):
        torch.manual_seed(0)
        args = [x.requires_grad_() for x in arguments(*size, dtype)[op]]
        y = op(*args, backend=backend)
        assert y.dtype == dtype
        y.float().square().sum().backward()
        results.append([y.detach(), *(x.grad for x in args)])
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.5}
    torch.testing.assert_close(results[1], results[0], **tolerance)


@needs_compiler
@pytest.mark.parametrize("op", [global_filter, dynamic_filter, spectral_rescale])
def test_overwrites_its_map_only_where_no_gradient_is_recorded(op):
    x, *rest = arguments(7, 6, torch.float32)[op]
    expected, kept = op(x, *rest, backend="cpu"), x.clone()
    assert op(kept, *rest, inplace=True, backend="cpu").equal(expected)
    assert kept.equal(x)
    with torch.inference_mode():
        y = op(kept, *rest, inplace=True, backend="cpu")
        assert y is kept
        assert y.equal(expected)
        elsewhere = x.transpose(1, 2).contiguous().transpose(1, 2)  # does not lie as the kernel writes
        assert op(elsewhere, *rest, inplace=True, backend="cpu").equal(expected)
        assert elsewhere.equal(x)


@pytest.mark.parametrize("size", [(8, 6), (3, 5)])
def test_gradient_of_resizing(size):
    weight = torch.randn(6, 4, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: resize_filter(w, *size), weight)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("op", OPS)
def test_transforms_are_in_float32_and_results_in_the_dtype_of_the_map(op, dtype, autocast):
    """The result is that of float32 rounded, on maps whose sides are no powers of two too."""
    args = arguments(7, 6, dtype)[op]
    wide = torch.promote_types(dtype, torch.float32)
    with Transforms() as transforms, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = op(*args)
    assert y.dtype == dtype
    assert transforms.dtypes <= {wide, wide.to_complex()}
    torch.testing.assert_close(y, op(*(x.to(wide) for x in args)).to(dtype), rtol=0, atol=0)


# Fourier analysis ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_parseval(size):
    """The orthonormal transform keeps energy, and so does a filter of modulus one."""
    x = torch.randn(2, *size, 3, dtype=torch.float64)
    energy = x.square().sum(dim=(1, 2))
    torch.testing.assert_close(amplitude_spectrum(x).square().sum(dim=(1, 2)), energy)

    shift = torch.fft.rfft2(torch.eye(1, size[0] * size[1]).view(*size, 1).roll((1, 2), (0, 1)).double(), dim=(0, 1))
    weight = torch.view_as_real(shift).expand(-1, -1, 3, -1)  # of a shift: e^(-i w)
    torch.testing.assert_close(global_filter(x, weight).square().sum(dim=(1, 2)), energy)


@pytest.mark.parametrize("op", OPS)
def test_what_a_filter_of_one_does(op):
    """All but the spectrum leave the map as it is where nothing is weighed."""
    x, *rest = arguments(6, 9)[op]
    if op is amplitude_spectrum:
        constant = amplitude_spectrum(torch.ones_like(x))
        assert constant[:, 0, 0].allclose(constant.new_tensor(54**0.5))  # all of it at zero frequency
        assert constant.count_nonzero() == 2 * 3
        return
    one = [torch.ones_like(argument) for argument in rest]
    if op in (global_filter, dynamic_filter):
        one[-1][..., 1] = 0
    if op is dynamic_filter:
        one[0] /= 4
    torch.testing.assert_close(op(x, *one), x)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("shift", [(1, 0), (0, 1), (3, 5), (-2, 4)])
def test_cyclic_shifts(op, shift):
    """Filters move with their map; the amplitude spectrum stays as it is."""
    x, *rest = arguments(7, 10)[op]
    y, of_shifted = op(x, *rest), op(x.roll(shift, (1, 2)), *rest)
    torch.testing.assert_close(of_shifted, y if op is amplitude_spectrum else y.roll(shift, (1, 2)))


@pytest.mark.parametrize("op", [op for op in OPS if op is not amplitude_spectrum])
def test_filters_are_linear(op):
    x, *rest = arguments(6, 5)[op]
    z = torch.randn_like(x)
    torch.testing.assert_close(op(2 * x - 3 * z, *rest), 2 * op(x, *rest) - 3 * op(z, *rest))


def test_equal_filters_make_the_dynamic_one_static():
    """With coefficients that sum to one; and with one-hot ones each image has a filter of its own."""
    x, coefficients, basis = arguments(6, 5)[dynamic_filter]
    weight = basis[:, :, :1].expand(-1, -1, 3, -1)
    equal = basis[:, :, :1].expand(-1, -1, 4, -1)
    torch.testing.assert_close(dynamic_filter(x, coefficients.softmax(1), equal), global_filter(x, weight))
    chosen = torch.zeros_like(coefficients)
    chosen[0, 1], chosen[1, 3] = 1, 1
    for i, n in ((0, 1), (1, 3)):
        alone = global_filter(x[i : i + 1], basis[:, :, n : n + 1].expand(-1, -1, 3, -1))
        torch.testing.assert_close(dynamic_filter(x, chosen, basis)[i : i + 1], alone)


def test_rescaling_changes_amplitudes_and_not_phases():
    x = torch.randn(2, 7, 6, 3)
    gain = torch.rand(7, 4, 3)
    gain[1:] = (gain[1:] + gain[1:].flip(0)) / 2  # even along the self-conjugate columns
    before, after = (torch.fft.rfft2(y, dim=(1, 2), norm="ortho") for y in (x, spectral_rescale(x, gain)))
    torch.testing.assert_close(after, before * gain)


# Spectral pooling ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("balance", [0.0, 0.5, 0.7, 0.9])
def test_pooling_is_a_sum_of_projections(balance):
    """(1 - lambda) x + (2 lambda - 1) P x + (ring - 1 + lambda) R x; at lambda = 1/2, scaling but on the ring."""
    ring = 1 / 3
    x = torch.randn(2, 14, 10, 3, dtype=torch.float64)
    distance = torch.hypot((torch.arange(14) - 7.0)[:, None], torch.arange(10) - 5.0)
    inside, on_ring = (spectral_pool(x, m.double()) for m in (distance < 2, distance == 2))
    for projected, mask in ((inside, distance < 2), (on_ring, distance == 2)):
        torch.testing.assert_close(spectral_pool(projected, mask.double()), projected)
    expected = (1 - balance) * x + (2 * balance - 1) * inside + (ring - 1 + balance) * on_ring
    mask = spectral_pooling_mask(14, 10, 2, balance, ring).double()
    torch.testing.assert_close(spectral_pool(x, mask), expected, rtol=1e-6, atol=1e-6)


def test_pooling_with_lambda_one_half_is_a_pure_scaling():
    x = torch.randn(2, 14, 10, 3)
    torch.testing.assert_close(spectral_pool(x, spectral_pooling_mask(14, 10, 2, 0.5, ring=None)), x / 2)


def test_pooling_scales_the_mean_by_lambda():
    """Zero frequency is inside any disc."""
    x = torch.randn(2, 9, 12, 3)
    pooled = spectral_pool(x, spectral_pooling_mask(9, 12, 1, 0.7))
    torch.testing.assert_close(pooled.mean(dim=(1, 2)), 0.7 * x.mean(dim=(1, 2)))


@pytest.mark.parametrize("ring", [None, 1 / 3])
@pytest.mark.parametrize("radius", [1, 2, 4])
@pytest.mark.parametrize("size", SIZES)
def test_pooling_and_a_linear_map_need_no_transform(size, radius, ring):
    """Groups of 2, 3 and 1 channels with a balance each: as many poolings, and then one product."""
    x, bias = torch.randn(2, *size, 6, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    weights = [torch.randn(5, channels, dtype=torch.float64) for channels in (2, 3, 1)]
    masks = [spectral_pooling_mask(*size, radius, balance, ring).double() for balance in (0.7, 0.5, 0.9)]
    pooled = torch.cat([spectral_pool(*pair) for pair in zip(x.split([2, 3, 1], dim=3), masks, strict=True)], dim=3)
    expected = pooled @ torch.cat(weights, dim=1).T + bias
    with Transforms() as transforms:
        torch.testing.assert_close(
            pooled_linear(x, masks, radius, weights, bias, backend="matmul"), expected, rtol=1e-5, atol=1e-5
        )
    assert transforms.dtypes == set()
    torch.testing.assert_close(pooled_linear(x, masks, radius, weights, bias, backend="torch"), expected)


@pytest.mark.parametrize(("size", "radius"), [((56, 56), 2), ((28, 28), 2), ((14, 14), 1), ((7, 7), 1)])
def test_mask_values_of_the_official_code(size, radius):
    mask = spectral_pooling_mask(*size, radius, 0.8)
    low = torch.tensor(0.8)
    values, counts = mask.unique(return_counts=True)
    assert values.tolist() == torch.stack([1 - low, torch.tensor(1 / 3), low]).tolist()  # to the bit
    assert counts.tolist()[1:] == [4, {1: 1, 2: 9}[radius]]


@pytest.mark.parametrize("radius", [1, 2, 4])
@pytest.mark.parametrize("size", [(8, 12), (12, 8), (7, 25), (1, 6)])
def test_mask_is_centred_on_any_map(size, radius):
    """Symmetric around zero frequency, and the disc is round: it has the same extent along rows and columns."""
    mask = spectral_pooling_mask(*size, radius, 0.9)
    centre = mask.new_zeros(size)
    centre[size[0] // 2, size[1] // 2] = 1
    assert spectral_pooling_mask(*size, 0.5, 1.0, ring=None).equal(centre)
    unshifted = torch.fft.ifftshift(mask)
    mirrored = unshifted.roll((-1, -1), dims=(0, 1)).flip(0, 1)
    assert mirrored.equal(unshifted)
    assert mask.T.equal(spectral_pooling_mask(size[1], size[0], radius, 0.9))


# Resizing ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trailing", [(), (4, 2), (3,)])
def test_a_filter_of_the_right_size_is_handed_back(trailing):
    weight = torch.randn(14, 8, *trailing)
    assert resize_filter(weight, 14, 14) is weight
    assert resize_filter(weight, 14, 15) is weight  # its half spectrum is as wide


@pytest.mark.parametrize("size", [(7, 7), (28, 28), (20, 15), (5, 3)])
def test_resizing_keeps_corners_and_constants_and_treats_planes_alike(size):
    weight = torch.randn(14, 8, 4, 2, dtype=torch.float64)
    resized = resize_filter(weight, *size)
    assert resized.shape == (size[0], size[1] // 2 + 1, 4, 2)
    for row in (0, -1):
        for column in (0, -1):
            torch.testing.assert_close(resized[row, column], weight[row, column])
    torch.testing.assert_close(resize_filter(torch.full_like(weight, 0.3), *size), torch.full_like(resized, 0.3))
    torch.testing.assert_close(resize_filter(weight[:, :, 2], *size), resized[:, :, 2])


def test_resizing_is_cubic():
    """Twice as fine, it passes through every old coefficient, and through a straight line away from the border."""
    weight = torch.randn(8, 5, 1, dtype=torch.float64)
    torch.testing.assert_close(resize_filter(weight, 15, 16)[::2, ::2], weight)
    line = torch.arange(8.0, dtype=torch.float64)[:, None, None].expand(8, 5, 1)
    fine = resize_filter(line, 15, 16)
    torch.testing.assert_close(fine[2:-2, 0, 0], torch.arange(1.0, 6.5, 0.5, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_resizing_rounds_once(dtype):
    weight = torch.randn(14, 8, 4, 2).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        resized = resize_filter(weight, 9, 7)
    assert resized.equal(resize_filter(weight.float(), 9, 7).to(dtype))
