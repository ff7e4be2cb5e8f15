"""The JEPA score: how typical an encoder finds an image. Lower is rarer."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .encoder import Encoder
from .jacobian import JacobianOperator, Pullback, images_of_a_pass
from .precision import differentiable, full_precision
from .range_finder import draw_sketch, gram, numerical_rank_floor, randomized_svd

# The number of fixed random outputs that a projected score uses; see jepa_score.
PROJECTION = 48


def log_sum(singular_values: Tensor, embed_dim: int, eps: float) -> Tensor:
    """Return sum_i log max(s_i, eps), counting rounding noise as eps. singular_values (r,) -> scalar."""
    noise = singular_values < numerical_rank_floor(singular_values, embed_dim)
    return torch.where(noise, eps, singular_values).clamp(min=eps).log().sum()


def jepa_score(
    encoder: Encoder,
    x: Tensor,
    *,
    top_k: int | None = None,
    projection: int | None = None,
    eps: float = 1e-6,
    chunk: int | None = None,
    on_pass: Callable[[], None] | None = None,
) -> Tensor:
    """Return the JEPA score JS(x) = sum_i log max(s_i(J), eps) of each image (arXiv 2605.24631, eq. 3).

    Exact unless top_k or projection is given: every row of J by VJPs that share one forward pass, and the
    eigenvalues of J J^T in float64. Singular values below the numerical rank floor s_1 * d * 2^-23 are rounding
    noise and count as eps (a final LayerNorm causes two of them), so that correct implementations agree.

    Args:
        x: (B, *encoder.input_shape), preprocessed.
        top_k: sum only the k largest singular values, by a randomized SVD of rank k with oversampling 4 and
            two power iterations. Costs 6 (k + 4) directions instead of d. Not comparable with exact scores or
            other k.
        projection: the score of P J for a fixed random P with this many orthonormal rows, by VJPs in half
            precision where the device is fast at it. Its ranking is close to the exact one, closer than top_k's
            at the same cost (research/figures/score.json). Not comparable with exact scores or other numbers of rows.
        eps: floor of a singular value.
        chunk: directions per encoder pass; None takes as many as fit in memory.
        on_pass: called without arguments after every encoder pass; may raise to stop.

    Returns:
        (B,) float64 on the CPU.

    Raises:
        ValueError: x has the wrong shape, x or the Jacobian is not finite, top_k or projection is outside 1..d, both are
            given, or eps is not positive.
    """
    _check(encoder, x, top_k=top_k, projection=projection)
    if top_k is not None and projection is not None:
        raise ValueError(f"top_k {top_k} and projection {projection} exclude each other; give only one")
    if not eps > 0:
        raise ValueError(f"eps must be positive, got {eps}")
    embed_dim = encoder.embed_dim
    with differentiable(encoder), full_precision(encoder.weight.device):
        if top_k is not None:
            found = [
                randomized_svd(
                    JacobianOperator(encoder, image, chunk=chunk, on_pass=on_pass),
                    rank=top_k,
                    oversample=4,
                    power_iterations=2,
                    seed=0,
                ).singular_values
                for image in x
            ]
        else:
            outputs = (
                random_outputs(projection, embed_dim) if projection else torch.eye(embed_dim, device="cpu")
            )
            half = projection is not None
            rows = _rows(encoder, x, outputs, half=half, chunk=chunk, on_pass=on_pass)
            found = [torch.linalg.eigvalsh(gram(one)).clamp(min=0).sqrt() for one in rows]
    return torch.stack([log_sum(s, embed_dim, eps) for s in found])


def _rows(
    encoder: Encoder,
    x: Tensor,
    outputs: Tensor,
    *,
    half: bool = False,
    chunk: int | None = None,
    on_pass: Callable[[], None] | None = None,
) -> Iterator[Tensor]:
    """Yield outputs @ J (r, n) of each image; as many images share a pass as the device has room for."""
    for images in x.split(images_of_a_pass(encoder, len(outputs))):
        for rows in Pullback(encoder, images, half=half, chunk=chunk, on_pass=on_pass)(outputs):
            if not rows.isfinite().all():
                raise ValueError(
                    "an image has no score: the encoder's derivatives there are not finite, because its pixels are far "
                    "outside 0 to 1"
                )
            yield rows


def patch_scores(
    encoder: Encoder,
    x: Tensor,
    *,
    projection: int = PROJECTION,
    eps: float = 1e-6,
    chunk: int | None = None,
    on_pass: Callable[[], None] | None = None,
) -> Tensor:
    """Return the JEPA score of every patch of each image: the score if only that patch's pixels could change.

    The score of an image is the sum of the logs of the singular values of J (arXiv 2605.24631, eq. 3). That of a patch
    is the same sum for the patch's columns of J: how sensitive the embedding is to small changes there. Lower is rarer.
    P J replaces J, with the P of projected scores (jepa_score). All patches share its rows, so a map costs as much as
    one projected score, here in full precision.

    Args:
        x: (B, 3, S, S), preprocessed.
        projection: rows of P.
        eps: floor of a singular value.
        chunk, on_pass: see jepa_score.

    Returns:
        (B, S / patch, S / patch) float64 on the CPU, one score per patch of the encoder.

    Raises:
        ValueError: x has the wrong shape, x or the Jacobian is not finite, the encoder takes clips, or projection is outside
            1..d.
    """
    if encoder.frames is not None:
        raise ValueError(
            f"patch scores are for single images; this encoder takes clips of {encoder.frames} frames"
        )
    _check(encoder, x, projection=projection)
    patch = encoder.model.config.patch_size
    side = encoder.image_size // patch
    outputs = random_outputs(projection, encoder.embed_dim)
    maps = []
    with differentiable(encoder), full_precision(encoder.weight.device):
        for rows in _rows(encoder, x, outputs, chunk=chunk, on_pass=on_pass):
            pixels = rows.reshape(projection, -1, side, patch, side, patch)
            patches = pixels.permute(2, 4, 0, 1, 3, 5).reshape(side * side, projection, -1)
            squares = torch.stack([torch.linalg.eigvalsh(gram(columns)) for columns in patches])
            scores = [log_sum(s, encoder.embed_dim, eps) for s in squares.clamp(min=0).sqrt()]
            maps.append(torch.stack(scores).reshape(side, side))
    return torch.stack(maps)


def _check(encoder: Encoder, x: Tensor, **counts: int | None) -> None:
    """Raise ValueError for images that cannot be scored, and for counts (by name) outside 1..d."""
    if x.shape[1:] != encoder.input_shape:
        wanted = ", ".join(map(str, encoder.input_shape))
        raise ValueError(f"x must be (batch, {wanted}) from encoder.preprocess, got {tuple(x.shape)}")
    if not x.isfinite().all():
        raise ValueError("x holds NaN or infinite pixels, which cannot be scored")
    for name, count in counts.items():
        if count is not None and not 1 <= count <= encoder.embed_dim:
            raise ValueError(f"{name} must be 1 to {encoder.embed_dim}, the embedding's length, got {count}")


def random_outputs(count: int, embed_dim: int) -> Tensor:
    """Return the fixed random P of projected scores: (count, embed_dim), orthonormal rows, CPU float64."""
    return torch.linalg.qr(draw_sketch(count, embed_dim, seed=0).T).Q.T
