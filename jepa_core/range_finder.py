"""Top singular triplets of the encoder's Jacobian by a randomized block Krylov range finder.

Halko, Martinsson, Tropp, SIAM Review 2011 (range finder, power iterations); Musco, Musco, NeurIPS 2015
(keeping every block of the power iteration). The paper (arXiv 2605.24631, section 4) keeps the last block
alone; all blocks cost the same products and capture more of the subspace.

Matrices with a side in embedding space are small and live on the CPU in float64, which every device's
host has; those with a side in image space stay on the encoder's device in its dtype.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .jacobian import JacobianOperator

FLOAT32_EPS = 2.0**-23


class Triplets(NamedTuple):
    """Singular triplets, largest first: u (k, d) CPU float64, sigma (k,) CPU float64, v (k, n) on the device."""

    u: Tensor
    sigma: Tensor
    v: Tensor


def draw_sketch(directions: int, size: int, seed: int) -> Tensor:
    """Return the Gaussian sketch (directions, size), float64 on the CPU: a function of its arguments alone."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(directions, size, generator=generator, dtype=torch.float64, device="cpu")


def numerical_rank_floor(sigma: Tensor, embed_dim: int) -> Tensor:
    """Return the value below which a singular value is rounding noise, sigma_1 * d * 2^-23."""
    return sigma.max() * embed_dim * FLOAT32_EPS


def gram(rows: Tensor) -> Tensor:
    """Return rows @ rows^T in float64 on the CPU; rows (m, n). Done in slices, so no float64 copy of rows."""
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device="cpu")
    for part in rows.split(1 << 15, dim=1):
        # some devices have no float64, so the slice goes to the CPU first
        part = part.cpu().double()
        total += part @ part.T
    return total


def _orthonormal_rows(rows: Tensor, embed_dim: int) -> Tensor:
    """Return an orthonormal basis (m', n), m' <= m, of the row space, leaving rounding noise out."""
    values, vectors = torch.linalg.eigh(gram(rows))
    sigma = values.clamp(min=0).sqrt()
    keep = sigma > numerical_rank_floor(sigma, embed_dim)
    transform = (vectors[:, keep] / sigma[keep]).T
    return transform.to(rows) @ rows


def _new_directions(basis: Tensor, candidates: Tensor) -> Tensor:
    """Orthonormal basis (m, d) of what `candidates` (r, d) add to the orthonormal `basis` (b, d)."""
    room = min(len(candidates), basis.shape[1] - len(basis))
    # twice is enough: the second projection removes what rounding left of the first
    for _ in range(2):
        candidates = candidates - candidates @ basis.T @ basis
        candidates = torch.linalg.qr(candidates.T).Q.T
    return candidates[:room]


def find_range(
    jacobian: JacobianOperator, *, rank: int, oversample: int, power_iterations: int, seed: int
) -> Triplets:
    """Return the top `rank` singular triplets of J as this range finder sees them.

    Costs (power_iterations + 1) JVPs and as many VJPs, each batched over rank + oversample directions.
    J^T u_i = sigma_i v_i holds exactly; J v_i = sigma_i u_i only as far as the range has converged.

    Raises:
        FloatingPointError: the Jacobian is not finite or is zero.
    """
    embed_dim, size = jacobian.shape
    directions = min(rank + oversample, embed_dim)
    tangents = draw_sketch(directions, size, seed).to(jacobian.embedding)
    basis = torch.zeros(0, embed_dim, dtype=torch.float64, device="cpu")
    rows: list[Tensor] = []
    for block in range(power_iterations + 1):
        if block:
            tangents = _orthonormal_rows(rows[-1], embed_dim)
        candidates = jacobian.jvp(tangents).cpu().double()
        if not candidates.isfinite().all():
            raise FloatingPointError("the encoder's Jacobian is not finite at this image")
        new = _new_directions(basis, candidates)
        if len(new) == 0:  # the basis already spans the embedding space
            break
        basis = torch.cat([basis, new])
        rows.append(jacobian.vjp(new))
    projected = torch.cat(rows)  # Q^T J
    values, vectors = torch.linalg.eigh(gram(projected))
    if not values[-1] > 0:
        raise FloatingPointError("the encoder's Jacobian is zero or not finite at this image")
    sigma = values.flip(0)[:rank].clamp(min=0).sqrt()
    rotation = vectors.flip(1)[:, :rank].T
    safe = sigma.clamp(min=numerical_rank_floor(sigma, embed_dim).item())
    v = (rotation / safe[:, None]).to(projected) @ projected
    return Triplets(rotation @ basis, sigma, v)
