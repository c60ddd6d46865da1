"""Frequency responses of token mixers with random weights, on the graph of a 16 x 16 grid (SPANetV2 Figure 1).

Any linear mixing of N tokens is a matrix, y = M x: M holds the kernel of a convolution around each token, or the
softmax of self-attention. Graph signal processing assigns frequencies to token signals: the eigenvalues of a graph's
Laplacian, with its eigenvectors as Fourier basis (Shuman et al., "The Emerging Field of Signal Processing on Graphs",
IEEE Signal Processing Magazine 30(3), 2013, https://arxiv.org/abs/1211.0053). The response of M to a frequency is how M
transforms the eigenvectors (Balcilar et al., "Analyzing the Expressive Power of Graph Neural Networks in a Spectral
Perspective", ICLR 2021). The Laplacian is the normalised one, L = I - D^(-1/2) A D^(-1/2) with degrees D. Its
eigenvalues lie between 0 and 2; the larger one is, the more a signal changes between neighbours.

Which graph? The paper's summary does not say, and there is no released code. Two choices are implemented. They answer
different questions, and both show the paper's claim:

- One graph for all mixers, the grid with four neighbours per token (``grid_response``). It shows what a mixer does to
  the same pattern: ``gain(lambda) = |M U| / sqrt(m)`` in the Frobenius norm, the root mean square of the gains over the
  m eigenvectors U of lambda. The *cut-off* is the lowest frequency above which the gain stays below 1 / sqrt(2) of that
  at 0. It moves towards 0 as the kernel grows.
- The graph defined by the mixer itself, A = (M + M^T) / 2 (``connectivity_frequencies``). On it, the mixing
  D^(-1/2) A D^(-1/2) has the response 1 - lambda by definition, the same line for all mixers, which differ only in the
  range of their eigenvalues. The magnitude of the line grows again only above 1, so this is where a mixer can pass fast
  changes. As the kernel grows, the eigenvalues concentrate around 1. If all tokens are connected, as in attention, all
  but the first are near 1, where the response is 0. (The caption's "cut-off frequency" that "shifts closer to one" may
  be the highest of them.)

Weights are non-negative, as are graph edges, attention weights and smoothing kernels, and sum to 1 for each token. This
matters: a kernel of independent weights of mean 0 has the same mean square gain at all frequencies, whatever its size.
The claim is therefore about how many tokens are connected by weights of one sign, not about kernels in general.

The grid is periodic, so a convolution is exact, without a border.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor


@dataclass(frozen=True)
class Response:
    """Response of a token mixer to the frequencies of a graph.

    Attributes:
        frequency: Eigenvalues of the normalised Laplacian, (F,), in [0, 2], ascending.
        gain: Gain at each frequency, (F,).
    """

    frequency: Tensor
    gain: Tensor

    @property
    def cutoff(self) -> float:
        """The lowest frequency above which the gain stays below 1 / sqrt(2) of that at 0; NaN if there is none.

        It is interpolated between the two neighbouring frequencies on the scale of sqrt(lambda), which is proportional
        to spatial frequency for slow waves.
        """
        level = self.gain[0] / 2**0.5
        passed = (self.gain >= level).nonzero().flatten()
        last = int(passed[-1])
        if last == len(self.gain) - 1:
            return float("nan")
        (x0, x1), (y0, y1) = self.frequency[last : last + 2].sqrt(), self.gain[last : last + 2]
        return float((x0 + (x1 - x0) * (y0 - level) / (y0 - y1)) ** 2)


@dataclass(frozen=True)
class Simulation:
    """A kind of token mixer, sampled several times.

    Attributes:
        name: Name in figures.
        grid: Responses on the common grid, one per sample.
        connectivity: Frequencies of the mixer's own graph, one per sample.
    """

    name: str
    grid: list[Response]
    connectivity: list[Tensor]


def simulate(
    kernel_sizes: Sequence[int] = (3, 5, 7, 9), size: int = 16, draws: int = 20, seed: int = 0
) -> list[Simulation]:
    """Simulate random convolutions with growing kernels, then random self-attention (SPANetV2 Figure 1).

    Args:
        kernel_sizes: Odd numbers up to ``size``; by default those of SPANetV2's SPAM.
        size: Side of the token grid.
        draws: Number of random samples of each kind.
    """
    generator = torch.Generator().manual_seed(seed)

    def random_convolution(kernel_size: int) -> Tensor:
        return convolution(random_kernel(kernel_size, generator), size)

    kinds = {f"convolution {k} × {k}": partial(random_convolution, k) for k in kernel_sizes}
    kinds["self-attention"] = partial(random_attention, size * size, generator=generator)
    simulations = []
    for name, draw in kinds.items():
        mixers = [draw() for _ in range(draws)]
        simulations.append(
            Simulation(name, [grid_response(m) for m in mixers], [connectivity_frequencies(m) for m in mixers])
        )
    return simulations


def summary(simulations: Sequence[Simulation]) -> list[dict[str, str | float]]:
    """Return the cut-off on the grid, mean and standard deviation, and the mean highest frequency of the own graph.

    Means and standard deviations are over the random samples.
    """
    rows: list[dict[str, str | float]] = []
    for found in simulations:
        cutoffs = torch.tensor([response.cutoff for response in found.grid], dtype=torch.float64)
        rows.append(
            {
                "mixer": found.name,
                "cut-off on the grid": float(cutoffs.mean()),
                "its std": float(cutoffs.std()),
                "highest frequency of its own graph": float(torch.stack(found.connectivity)[:, -1].mean()),
            }
        )
    return rows


def random_kernel(size: int, generator: torch.Generator | None = None) -> Tensor:
    """Return the weights of a convolution, uniform in [0, 1) and divided by their sum: (size, size)."""
    kernel = torch.rand(size, size, generator=generator, dtype=torch.float64)
    return kernel / kernel.sum()


def convolution(kernel: Tensor, size: int) -> Tensor:
    """Return the matrix of a convolution on a periodic grid, (size², size²), with tokens in raster order.

    Args:
        kernel: (k, k) with odd k <= size.
    """
    side = kernel.shape[0]
    if kernel.shape != (side, side) or side % 2 == 0 or side > size:
        raise ValueError(f"a kernel is square, odd and no wider than the grid of {size}, not {tuple(kernel.shape)}")
    padded = torch.zeros(size, size, dtype=kernel.dtype)
    padded[:side, :side] = kernel
    padded = padded.roll((-(side // 2), -(side // 2)), dims=(0, 1))  # the kernel's middle on token 0
    index = torch.arange(size)
    offset = (index[None, :] - index[:, None]) % size
    # Row (i, j), column (k, l): the weight at offset (k - i, l - j).
    return padded[offset[:, None, :, None], offset[None, :, None, :]].reshape(size * size, size * size)


def random_attention(tokens: int, head_dim: int = 64, generator: torch.Generator | None = None) -> Tensor:
    """Return self-attention softmax(Q K^T / sqrt(d)) of standard normal queries and keys: (tokens, tokens)."""
    query, key = torch.randn(2, tokens, head_dim, generator=generator, dtype=torch.float64)
    return (query @ key.T / head_dim**0.5).softmax(dim=1)


def grid_response(mixer: Tensor) -> Response:
    """Return a mixer's root mean square gain at each frequency of the periodic grid with four neighbours per token.

    Args:
        mixer: M, (N, N), on a square grid of N tokens in raster order.
    """
    side = round(mixer.shape[0] ** 0.5)
    if mixer.shape != (side * side, side * side):
        raise ValueError(f"a mixer on a square grid is (side², side²), not {tuple(mixer.shape)}")
    frequency, basis, group = _grid_basis(side)
    power = (mixer.to(basis.dtype) @ basis).square().sum(0)
    members = torch.bincount(group)
    return Response(
        frequency, (torch.zeros(len(frequency), dtype=power.dtype).index_add(0, group, power) / members).sqrt()
    )


def connectivity_frequencies(mixer: Tensor) -> Tensor:
    """Return the frequencies of a mixer's own graph, on which its response to lambda is 1 - lambda.

    Args:
        mixer: M, (N, N), without negative weights.

    Returns:
        Eigenvalues of the normalised Laplacian of (M + M^T) / 2, (N,), in [0, 2], ascending.
    """
    if mixer.min() < 0:
        raise ValueError("the edges of a graph have no negative weights")
    edges = (mixer + mixer.T) / 2
    scale = edges.sum(1).rsqrt()
    return 1 - torch.linalg.eigvalsh(scale[:, None] * edges * scale).flip(0)


@lru_cache
def _grid_basis(side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the grid's distinct frequencies (F,), its Fourier basis (N, N), and each vector's frequency index (N,)."""
    ring = torch.zeros(side, side, dtype=torch.float64)
    index = torch.arange(side)
    ring[index, (index + 1) % side] += 1
    ring[index, (index - 1) % side] += 1
    identity = torch.eye(side, dtype=torch.float64)
    laplacian = (
        torch.eye(side * side, dtype=torch.float64) - (torch.kron(ring, identity) + torch.kron(identity, ring)) / 4
    )
    eigenvalues, basis = torch.linalg.eigh(laplacian)
    rounded = (eigenvalues * 1e9).round() / 1e9  # merges values that differ only by rounding
    frequency, group = rounded.unique(return_inverse=True)
    return frequency.abs(), basis, group
