"""The depthwise convolution: its CPU kernel equals torch, and it stands aside where it cannot or need not work."""

import pytest
import torch
import torch.nn.functional as F

from frepro.ops import depthwise_conv
from tests.compiler import needs_compiler
from tests.ops.test_cpu import assert_equal_to_reference, assert_within


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@needs_compiler
@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("kernel", [(1, 7), (7, 7), (9, 9), (5, 5), (3, 11), (1, 15)])
@pytest.mark.parametrize("shape", [(2, 40, 14, 12), (3, 16, 9, 7), (1, 5, 2, 3), (1, 33, 1, 1)])
def test_kernel(shape, kernel, layout):
    channels = shape[1]
    x, weight = torch.randn(shape).contiguous(memory_format=layout), torch.randn(channels, 1, *kernel)
    assert_equal_to_reference(depthwise_conv, [x, weight, torch.randn(channels)])
    assert_equal_to_reference(depthwise_conv, [x, weight])


@needs_compiler
@pytest.mark.parametrize("threads", [1, 3])
def test_by_any_number_of_threads(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_equal_to_reference(depthwise_conv, [torch.randn(2, 40, 9, 9), torch.randn(40, 1, 5, 7)])
    finally:
        torch.set_num_threads(before)


def test_images_need_no_gradient():
    x, weight = torch.randn(2, 6, 9, 9), torch.randn(6, 1, 1, 7, requires_grad=True)
    depthwise_conv(x, weight).square().sum().backward()
    exact = weight.detach().double().requires_grad_()
    F.conv2d(x.double(), exact, padding=(0, 3), groups=6).square().sum().backward()
    assert_within(weight.grad, exact.grad, 1e-4)


def test_the_derivative_of_a_gradient():
    found = []
    for convolve in (depthwise_conv, lambda x, w: F.conv2d(x, w, padding=(0, 3), groups=6)):
        torch.manual_seed(0)
        x, weight = torch.randn(2, 6, 9, 9, requires_grad=True), torch.randn(6, 1, 1, 7, requires_grad=True)
        gradients = torch.autograd.grad(convolve(x, weight).pow(3).sum(), (x, weight), create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in gradients), (x, weight)))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-3)


def test_transforms_are_left_to_torch():
    x, weight = torch.randn(4, 6, 9, 9), torch.randn(6, 1, 1, 7, requires_grad=True)
    per_image = torch.func.vmap(torch.func.grad(lambda w, x: depthwise_conv(x[None], w).sum()), (None, 0))(weight, x)
    assert per_image.shape == (4, 6, 1, 1, 7)
    _, tangent = torch.func.jvp(lambda w: depthwise_conv(x, w), (weight,), (weight,))
    torch.testing.assert_close(tangent, depthwise_conv(x, weight))


@pytest.mark.parametrize("kernel", [(3, 3), (7, 1), (1, 17)])
def test_other_kernels_are_left_to_torch(kernel):
    x, weight = torch.randn(1, 4, 20, 20), torch.randn(4, 1, *kernel, requires_grad=True)
    expected = F.conv2d(x, weight, padding=(kernel[0] // 2, kernel[1] // 2), groups=4)
    torch.testing.assert_close(depthwise_conv(x, weight), expected)


@needs_compiler
def test_forced_where_it_is_not_needed_and_where_it_cannot_work():
    x = torch.randn(1, 4, 20, 20)
    for weight in (torch.randn(4, 1, 1, 7), torch.randn(4, 1, 3, 3, requires_grad=True)):
        assert depthwise_conv(x, weight, backend="cpu").equal(depthwise_conv(x, weight, backend="torch"))
    with pytest.raises(ValueError, match="kernels must be odd and at most 15 wide"):
        depthwise_conv(x, torch.randn(4, 1, 1, 17), backend="cpu")


def test_shapes_that_do_not_fit_are_refused():
    weight = torch.randn(4, 1, 1, 7, requires_grad=True)
    with pytest.raises(RuntimeError):
        depthwise_conv(torch.randn(1, 5, 9, 9), weight)
