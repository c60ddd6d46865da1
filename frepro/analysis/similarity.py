"""Similarity of the representations of two models, layer by layer: minibatch linear CKA.

Nguyen, Raghu and Kornblith, "Do Wide and Deep Networks Learn the Same Things?", ICLR 2021
(https://arxiv.org/abs/2010.15327), eq. 1 to 4; used in DFFormer, Figure 7. Centred kernel alignment compares two sets
of features of the same images by the inner products between images within each set. It is 1 for features that are equal
up to rotation and scale, and 0 on average for independent ones.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from frepro.analysis.features import Layer, batches, feature_maps

# The layers of DFFormer, Figure 7. For S18 these are 4 downsamplings, 18 token mixers and 18 MLPs, the latter two after
# their residual sums.
KINDS = ("downsample", "mixer_residual", "block")


@dataclass(frozen=True)
class Similarity:
    """CKA between all layers of two models.

    Attributes:
        values: (P, Q); at most about 1. Slightly negative values are estimation noise around 0.
        first: The P layers of the first model, from the shallowest.
        second: The Q layers of the second model, from the shallowest.
    """

    values: Tensor
    first: list[Layer]
    second: list[Layer]

    def by_stage(self) -> dict[int, float]:
        """Return stage -> mean CKA of layers at the same position in both models.

        Raises:
            ValueError: The models do not have the same number of layers in each stage.
        """
        stages = [layer.stage for layer in self.first]
        if stages != [layer.stage for layer in self.second]:
            raise ValueError("the layers of these models are not at the same positions")
        places = self.values.diagonal()
        return {
            stage: float(places[[i for i, other in enumerate(stages) if other == stage]].mean())
            for stage in dict.fromkeys(stages)
        }


def compare(
    first: nn.Module,
    second: nn.Module,
    images: Tensor | Iterable,
    second_images: Tensor | Iterable | None = None,
    kinds: Iterable[str] = KINDS,
) -> Similarity:
    """Return the CKA between all layers of two models (DFFormer Figure 7), over minibatches of images.

    Args:
        images: Normalised images, (N, 3, H, W), or batches of at least four of them each.
        second_images: The same images in the same batches, prepared for the second model if it needs another size or
            normalisation.
        kinds: Kinds of layers (see ``features.Layer``).
    """
    kinds = tuple(kinds)
    layers: list[list[Layer]] = [[], []]

    def features() -> Iterable[tuple[list[Tensor], list[Tensor]]]:
        pairs = (
            ((batch, batch) for batch in batches(images))
            if second_images is None
            else zip(batches(images), batches(second_images), strict=True)
        )
        for pair in pairs:
            of_first, of_second = feature_maps(first, pair[0], kinds), feature_maps(second, pair[1], kinds)
            layers[:] = [[found.layer for found in maps] for maps in (of_first, of_second)]
            yield [found.value for found in of_first], [found.value for found in of_second]

    values = minibatch_cka(features())
    return Similarity(values.cpu(), *layers)


def minibatch_cka(features: Iterable[tuple[Sequence[Tensor], Sequence[Tensor]]]) -> Tensor:
    """Return minibatch linear CKA: unbiased HSIC estimates of the batches, averaged (eq. 2).

    In symbols::

        CKA = mean HSIC(K, L) / sqrt(mean HSIC(K, K) mean HSIC(L, L)),   K = X X^T, L = Y Y^T

    Args:
        features: For each batch, the features of P layers and those of Q layers, each (B, ...) with B >= 4.

    Returns:
        (P, Q), float64; NaN for a layer that returns the same for all images.

    Raises:
        ValueError: There is no batch, or one of fewer than four images.
    """
    cross = first_own = second_own = torch.zeros(())
    count = 0
    for first, second in features:
        count += 1
        K = torch.stack([centred_gram(x).flatten() for x in first])
        L = torch.stack([centred_gram(x).flatten() for x in second])
        images = len(first[0])
        scale = images * (images - 3)
        cross = cross + K @ L.T / scale
        first_own = first_own + K.square().sum(1) / scale
        second_own = second_own + L.square().sum(1) / scale
    if count == 0:
        raise ValueError("there is no batch of features to compare")
    return cross / (first_own[:, None] * second_own).sqrt()


def centred_gram(x: Tensor) -> Tensor:
    """Return inner products between images, centred to remove bias: a U-centred Gram matrix with diagonal 0.

    With it, HSIC_1(K, L) of Song et al. 2012 (eq. 3 of Nguyen et al.) is sum(K * L) / (n (n - 3)): Székely and Rizzo,
    "Partial distance correlation with methods for dissimilarities", 2014, eq. 2.4. A sum of squares is never negative,
    so the root in CKA always exists.

    Args:
        x: Features, (n, ...) with n >= 4.

    Returns:
        (n, n), float64.
    """
    n = len(x)
    if n < 4:
        raise ValueError(f"the unbiased estimate needs batches of four images or more, not {n}")
    flat = x.flatten(1).double()
    flat = flat - flat.mean(0)  # only reduces rounding errors
    gram = (flat @ flat.T).fill_diagonal_(0)
    means = gram.sum(1) / (n - 2)
    return (gram - means[:, None] - means + means.sum() / (n - 1)).fill_diagonal_(0)
