"""The gradient of the guided JEPA score in closed form, tracked from one image to the next."""

import copy
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .encoder import Encoder
from .jacobian import JacobianOperator
from .passes import Replay
from .precision import differentiable, full_precision
from .range_finder import (
    Range,
    basis_to_track,
    extend,
    in_double,
    numerical_rank_floor,
    project,
    ritz_triplets,
    sketch_range,
)
from .score import log_sum

EPS = 1e-6


@dataclass(frozen=True)
class Rarity:
    """The guided score of a batch and its gradient.

    Attributes:
        score: (B,) float64, sum of the logs of the top k singular values. Lower is rarer.
        singular_values: (B, k) float64, largest first.
        grad: (B, *encoder.input_shape), gradient of the score with respect to the preprocessed image; NaN if the
            Jacobian is not finite.
        u: (B, k, d) and v: (B, k, n), left and right singular vectors; J^T u_i = s_i v_i.
        residual: (B, k), |J v_i - s_i u_i| / s_i: how far the range finder is from convergence. The
            gradient is more accurate than this suggests, since it takes its left vectors from J v_i.
        encoder_calls: sequential encoder passes per image, forward or backward, before chunking; the maximum
            over the batch.
    """

    score: Tensor
    singular_values: Tensor
    grad: Tensor
    u: Tensor
    v: Tensor
    residual: Tensor
    encoder_calls: int


class RarityGradient:
    """Gradient of JS*(x) = sum_{i<=k} log s_i(J(x)) (arXiv 2605.24631, section 4).

    By the envelope theorem the top triplets are treated as constants, and the gradient is
    sum_i (1 / s_i) grad_x <u_i, J(x) v_i>: Hessian-vector products. It is exact once the range finder has
    converged, which `residual` measures.

    An image starts from a Gaussian sketch or, if its id was seen before, from the range found then: the images
    of neighbouring sampling steps differ little. Each round is one VJP of the range and one differentiation
    along its right vectors, which yields the left vectors and the Hessian-vector products. A cold start runs
    all rounds; a tracked image runs another one only while its residual is above the tolerance.

    Args:
        k: rank kept. oversample: p. (Paper: 9, 2.)
        power_iterations: q, the maximum number of rounds after the first. (Paper: 2.)
        seed: of the sketch, which is drawn on the CPU and the same for every image.
        tracked: start from the previous range of the same id; otherwise every call starts cold.
        tolerance: a tracked image with no larger residual needs no further round.
        half: multiply in bfloat16 where the device is fast at it. On a CPU in derivatives alone, nearly twice as fast,
            with a cosine of 0.994 or better to the exact gradient where it was measured. On other devices
            only in VJPs, and no faster for a small encoder.
        memory: bytes of activations that one encoder pass may keep; None chooses by device.
        chunk: directions per encoder pass; None chooses by memory and device.
        on_pass: called without arguments after every encoder pass; may raise to stop.
        replay: on CUDA, capture an encoder's passes as graphs when they come for the second time, and replay them from
            then on. They keep their memory, and the weights where they are, until the encoder is gone or `release` is
            called. Never run on a card.
    """

    def __init__(
        self,
        k: int = 9,
        oversample: int = 2,
        power_iterations: int = 2,
        seed: int = 0,
        *,
        tracked: bool = True,
        tolerance: float = 0.3,
        half: bool = False,
        memory: int | None = None,
        chunk: int | None = None,
        on_pass: Callable[[], None] | None = None,
        replay: bool = False,
    ) -> None:
        if k < 1 or oversample < 0 or power_iterations < 0 or not tolerance >= 0:
            raise ValueError(
                f"k must be at least 1, oversample, power_iterations and tolerance at least 0; "
                f"got {k}, {oversample}, {power_iterations}, {tolerance}"
            )
        self.k = k
        self.oversample = oversample
        self.power_iterations = power_iterations
        self.seed = seed
        self.tracked = tracked
        self.tolerance = tolerance
        self.half = half
        self.memory = memory
        self.chunk = chunk
        self.on_pass = on_pass
        self.replay = replay
        self._bases: dict[Hashable, Tensor] = {}
        # by the model, which copies of an encoder share
        self._replays: WeakKeyDictionary[nn.Module, Replay] = WeakKeyDictionary()

    def __call__(self, encoder: Encoder, x: Tensor, ids: Sequence[Hashable] | None = None) -> Rarity:
        """Return score and gradient for preprocessed x (B, *encoder.input_shape), computed image by image.

        Args:
            ids: keys under which the images' ranges are tracked from call to call; default range(B).

        Raises:
            ValueError: x has the wrong shape, k is larger than the embedding, or ids has another length than x.
        """
        if x.shape[1:] != encoder.input_shape:
            wanted = ", ".join(map(str, encoder.input_shape))
            raise ValueError(f"x must be (batch, {wanted}) from encoder.preprocess, got {tuple(x.shape)}")
        if self.k > encoder.embed_dim:
            raise ValueError(f"rank k = {self.k} is larger than the embedding, {encoder.embed_dim}; lower it")
        names = range(len(x)) if ids is None else ids
        if len(names) != len(x):
            raise ValueError(f"ids names {len(names)} images, the batch has {len(x)}")
        with differentiable(encoder), full_precision(encoder.weight.device):
            return _stack([self._one(encoder, image, name) for image, name in zip(x, names, strict=True)])

    def reset(self, ids: Sequence[Hashable] | None = None) -> None:
        """Forget the ranges of `ids`, or all of them, so that these images start cold."""
        for name in list(self._bases) if ids is None else ids:
            self._bases.pop(name, None)

    def fresh(self, on_pass: Callable[[], None] | None = None) -> "RarityGradient":
        """Return a copy with the same settings that tracks nothing yet, and calls `on_pass` after every encoder pass."""
        other = copy.copy(self)
        other.on_pass = on_pass
        other._bases = {}
        return other

    def release(self) -> None:
        """Free the memory that captured passes hold."""
        self._replays.clear()

    def snapshot(self) -> dict[Hashable, Tensor]:
        """The currently tracked ranges, for restore."""
        return dict(self._bases)

    def restore(self, ranges: Mapping[Hashable, Tensor]) -> None:
        """Return to the ranges of a snapshot."""
        self._bases.clear()
        self._bases.update(ranges)

    def _one(self, encoder: Encoder, image: Tensor, name: Hashable) -> Rarity:
        jacobian = JacobianOperator(
            encoder,
            image,
            half=self.half,
            memory=self.memory,
            chunk=self.chunk,
            on_pass=self.on_pass,
            replay=self._replays.setdefault(encoder.model, Replay()) if self.replay else None,
        )
        # removed first, so that a failure leaves no stale range
        basis = self._bases.pop(name, None)
        try:
            if basis is None or basis.shape[1] != encoder.embed_dim:
                found = sketch_range(jacobian, self.k + self.oversample, self.seed)
                # tolerance 0: after a cold start, a small residual does not rule out a missed direction
                return self._rarity(jacobian, found, 0.0, name, image.shape)
            return self._rarity(jacobian, project(jacobian, basis), self.tolerance, name, image.shape)
        except FloatingPointError:
            return _not_finite(encoder, image, self.k)

    def _rarity(
        self, jacobian: JacobianOperator, found: Range, tolerance: float, name: Hashable, shape: torch.Size
    ) -> Rarity:
        embed_dim, _ = jacobian.shape
        k = self.k
        for rounds_left in range(self.power_iterations, -1, -1):
            u, s, v = ritz_triplets(found, min(k + self.oversample, embed_dim))
            products, pull = jacobian.curvature(v)
            products = in_double(products)
            residual = (products - s[:, None] * u).norm(dim=1) / s.clamp(
                min=numerical_rank_floor(s, embed_dim).item()
            )
            if not rounds_left or residual[:k].max() <= tolerance:
                break
            del pull  # frees its graph
            found = extend(jacobian, found, products)
        # Restricted to these right vectors J is just the products, so their SVD gives the best left vectors:
        # J v_i = sum_j mix_ij t_j left_j, and J (mix^T v)_j = t_j left_j.
        mix, t, left = torch.linalg.svd(products, full_matrices=False)
        weight = torch.where(t < numerical_rank_floor(t, embed_dim), 0.0, 1 / t)
        gradient = pull((mix[:, :k] * weight[:k]) @ left[:k])  # noqa: F821 (deleted, then bound again)
        if self.tracked:
            self._bases[name] = basis_to_track(found, products)
        return Rarity(
            score=log_sum(s[:k], embed_dim, EPS),
            singular_values=s[:k],
            grad=gradient.reshape(shape),
            u=u[:k].to(v),
            v=v[:k],
            residual=residual[:k],
            encoder_calls=jacobian.encoder_calls,
        )


def _not_finite(encoder: Encoder, image: Tensor, k: int) -> Rarity:
    nan = encoder.weight.new_full((), torch.nan)
    nan64 = torch.full((), torch.nan, dtype=torch.float64, device="cpu")
    return Rarity(
        score=nan64,
        singular_values=nan64.expand(k),
        grad=nan.expand(image.shape),
        u=nan.expand(k, encoder.embed_dim),
        v=nan.expand(k, image.numel()),
        residual=nan64.expand(k),
        encoder_calls=0,
    )


def _stack(parts: list[Rarity]) -> Rarity:
    names = ("score", "singular_values", "grad", "u", "v", "residual")
    tensors = {name: torch.stack([getattr(part, name) for part in parts]) for name in names}
    return Rarity(**tensors, encoder_calls=max(part.encoder_calls for part in parts))
