"""The gradient of the guided JEPA score, in closed form."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .encoder import Encoder
from .jacobian import JacobianOperator
from .precision import differentiable, full_precision
from .range_finder import Triplets, find_range, numerical_rank_floor
from .score import log_sum

EPS = 1e-6


@dataclass(frozen=True)
class Rarity:
    """The guided score of a batch and its gradient.

    Attributes:
        score: (B,) float64, sum of the logs of the top k singular values. Lower is rarer.
        sigma: (B, k) float64, largest first.
        grad: (B, 3, S, S), gradient of the score with respect to the preprocessed image; NaN where the
            Jacobian was not finite.
        u: (B, k, d) and v: (B, k, n), left and right singular vectors.
        residual: (B, k), |J v_i - sigma_i u_i| / sigma_i: how far the range finder is from converged.
        encoder_calls: sequential encoder passes per image, forward or backward, before chunking.
    """

    score: Tensor
    sigma: Tensor
    grad: Tensor
    u: Tensor
    v: Tensor
    residual: Tensor
    encoder_calls: int


class RarityGradient:
    """Gradient of JS*(x) = sum_{i<=k} log sigma_i(J(x)) (arXiv 2605.24631, section 4).

    By the envelope theorem the top triplets count as constants, and the gradient is
    sum_i (1 / sigma_i) grad_x <u_i, J(x) v_i>: k Hessian-vector products. It is exact as far as the range
    finder has converged, which `residual` measures.

    Args:
        k: rank kept. oversample: p. power_iterations: q. (Paper: 9, 2, 2.)
        seed: of the sketch, drawn on the CPU and the same for every image.
        chunk: directions per encoder pass; None takes what fits memory.
        on_pass: called without arguments after every encoder pass; may raise to stop.
    """

    def __init__(
        self,
        k: int = 9,
        oversample: int = 2,
        power_iterations: int = 2,
        seed: int = 0,
        *,
        chunk: int | None = None,
        on_pass: Callable[[], None] | None = None,
    ) -> None:
        if k < 1 or oversample < 0 or power_iterations < 0:
            raise ValueError(
                f"k must be at least 1, oversample and power_iterations at least 0; "
                f"got {k}, {oversample}, {power_iterations}"
            )
        self.k = k
        self.oversample = oversample
        self.power_iterations = power_iterations
        self.seed = seed
        self.chunk = chunk
        self.on_pass = on_pass

    def __call__(self, encoder: Encoder, x: Tensor, ids: Sequence[Hashable] | None = None) -> Rarity:
        """Return score and gradient for x (B, 3, S, S), preprocessed, one image at a time.

        Args:
            ids: names under which an image's state is tracked from call to call, default range(B).

        Raises:
            ValueError: x of another shape, k larger than the embedding, or ids of another length.
        """
        size = encoder.image_size
        if x.ndim != 4 or x.shape[1:] != (3, size, size):
            raise ValueError(
                f"x must be (batch, 3, {size}, {size}) from encoder.preprocess, got {tuple(x.shape)}"
            )
        if self.k > encoder.embed_dim:
            raise ValueError(f"rank k = {self.k} is larger than the embedding, {encoder.embed_dim}")
        if ids is not None and len(ids) != len(x):
            raise ValueError(f"ids names {len(ids)} images, the batch has {len(x)}")
        with differentiable(encoder), full_precision(encoder.weight.device):
            return _stack([self._one(encoder, image) for image in x])

    def reset(self, ids: Sequence[Hashable] | None = None) -> None:
        """Forget the tracked state of `ids`, or of all. This range finder starts cold and tracks none."""

    def _one(self, encoder: Encoder, image: Tensor) -> Rarity:
        jacobian = JacobianOperator(encoder, image, chunk=self.chunk, on_pass=self.on_pass)
        try:
            triplets = find_range(
                jacobian,
                rank=self.k,
                oversample=self.oversample,
                power_iterations=self.power_iterations,
                seed=self.seed,
            )
        except FloatingPointError:
            triplets = _not_finite(jacobian, self.k)
        u, sigma, v = triplets
        weight = torch.where(sigma < numerical_rank_floor(sigma, encoder.embed_dim), 0.0, 1 / sigma)
        u_here, sigma_here = u.to(v), sigma.to(v)
        hessian_v, jacobian_v = jacobian.curvature(u_here, v, sigma_here[:, None] * v)
        residual = (jacobian_v - sigma_here[:, None] * u_here).norm(dim=1).cpu().double() / sigma
        return Rarity(
            score=log_sum(sigma, encoder.embed_dim, EPS),
            sigma=sigma,
            grad=(weight.to(v) @ hessian_v).reshape(image.shape),
            u=u_here,
            v=v,
            residual=residual,
            encoder_calls=jacobian.encoder_calls,
        )


def _not_finite(jacobian: JacobianOperator, rank: int) -> Triplets:
    embed_dim, size = jacobian.shape
    nan = jacobian.embedding.new_full((rank, size), torch.nan)
    return Triplets(
        torch.full((rank, embed_dim), torch.nan).double(), torch.full((rank,), torch.nan).double(), nan
    )


def _stack(parts: list[Rarity]) -> Rarity:
    names = ("score", "sigma", "grad", "u", "v", "residual")
    tensors = {name: torch.stack([getattr(part, name) for part in parts]) for name in names}
    return Rarity(**tensors, encoder_calls=max(part.encoder_calls for part in parts))
