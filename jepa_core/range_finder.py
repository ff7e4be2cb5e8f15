"""Top singular triplets of the encoder's Jacobian by a randomized block Krylov range finder.

Halko, Martinsson, Tropp, SIAM Review 2011 (range finder, power iterations); Musco, Musco, NeurIPS 2015
(keeping every block of the power iteration). The paper (arXiv 2605.24631, section 4) keeps only the last block;
keeping all of them costs no further products and captures more of the subspace.

Matrices in embedding space alone are small and kept on the CPU in float64, which not every device supports; those with
a side in image space stay on the encoder's device in its dtype.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .jacobian import JacobianOperator

FLOAT32_EPS = 2.0**-23


class Triplets(NamedTuple):
    """Singular triplets, largest first: u (k, d) and singular_values (k,), CPU float64, and v (k, n) on the device."""

    u: Tensor
    singular_values: Tensor
    v: Tensor


def draw_sketch(directions: int, size: int, seed: int) -> Tensor:
    """Return a Gaussian sketch (directions, size), float64 on the CPU, determined by the arguments alone."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(directions, size, generator=generator, dtype=torch.float64, device="cpu")


def numerical_rank_floor(singular_values: Tensor, embed_dim: int) -> Tensor:
    """Return the value below which a singular value is rounding noise, s_1 * d * 2^-23."""
    return singular_values.max() * embed_dim * FLOAT32_EPS


def gram(rows: Tensor) -> Tensor:
    """Return rows @ rows^T in float64 on the CPU; rows (m, n). Works in slices, without a float64 copy of rows."""
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device="cpu")
    for part in rows.split(1 << 15, dim=1):
        # some devices have no float64, so the slice goes to the CPU first
        part = part.cpu().double()
        total += part @ part.T
    return total


def _orthonormal_rows(rows: Tensor, embed_dim: int) -> Tensor:
    """Return an orthonormal basis (m', n), m' <= m, of the row space, without directions of rounding noise."""
    values, vectors = torch.linalg.eigh(gram(rows))
    s = values.clamp(min=0).sqrt()
    keep = s > numerical_rank_floor(s, embed_dim)
    transform = (vectors[:, keep] / s[keep]).T
    return transform.to(rows) @ rows


def _new_directions(basis: Tensor, candidates: Tensor) -> Tensor:
    """Orthonormal basis (m, d) of the part of span(candidates (r, d)) orthogonal to the orthonormal `basis` (b, d)."""
    room = min(len(candidates), basis.shape[1] - len(basis))
    # twice is enough: the second projection removes the rounding error of the first
    for _ in range(2):
        candidates = candidates - candidates @ basis.T @ basis
        candidates = torch.linalg.qr(candidates.T).Q.T
    return candidates[:room]


class Range(NamedTuple):
    """An approximate range of J: orthonormal basis Q (b, d), CPU float64, and Q J (b, n) on the device."""

    basis: Tensor
    rows: Tensor


def sketch_range(jacobian: JacobianOperator, directions: int, seed: int) -> Range:
    """A cold start: the range of J on a Gaussian sketch. Costs a JVP and a VJP of `directions` directions.

    Raises:
        FloatingPointError: the Jacobian is not finite.
    """
    embed_dim, size = jacobian.shape
    products = jacobian.jvp(draw_sketch(min(directions, embed_dim), size, seed))
    return project(jacobian, _new_directions(_empty_basis(embed_dim), in_double(products)))


def project(jacobian: JacobianOperator, basis: Tensor) -> Range:
    """The range spanned by a given orthonormal basis (b, d). Costs a VJP of b directions."""
    return Range(basis, jacobian.vjp(basis))


def extend(jacobian: JacobianOperator, found: Range, products: Tensor) -> Range:
    """Add the directions of products J v_i (r, d): the second half of a power iteration. Costs a VJP of r directions."""
    new = _new_directions(found.basis, products)
    if len(new) == 0:  # the basis already spans the embedding space
        return found
    return Range(torch.cat([found.basis, new]), torch.cat([found.rows, jacobian.vjp(new)]))


def ritz_triplets(found: Range, rank: int) -> Triplets:
    """The top `rank` singular triplets of Q^T Q J, J restricted to the range. Costs no products.

    J^T u_i = s_i v_i holds exactly; J v_i = s_i u_i only as far as the range has converged.

    Raises:
        FloatingPointError: the Jacobian is zero or not finite.
    """
    squares = gram(found.rows)
    if not squares.isfinite().all():
        raise FloatingPointError("the encoder's Jacobian is not finite at this image")
    values, vectors = torch.linalg.eigh(squares)
    if not values[-1] > 0:
        raise FloatingPointError("the encoder's Jacobian is zero at this image")
    s = values.flip(0)[:rank].clamp(min=0).sqrt()
    rotation = vectors.flip(1)[:, :rank].T
    safe = s.clamp(min=numerical_rank_floor(s, found.basis.shape[1]).item())
    v = (rotation / safe[:, None]).to(found.rows) @ found.rows
    return Triplets(rotation @ found.basis, s, v)


def randomized_svd(
    jacobian: JacobianOperator, *, rank: int, oversample: int, power_iterations: int, seed: int
) -> Triplets:
    """Return the top `rank` singular triplets of J by a randomized SVD with a fixed number of power iterations.

    Costs power_iterations + 1 JVPs and as many VJPs, each batched over rank + oversample directions.

    Raises:
        FloatingPointError: the Jacobian is not finite or is zero.
    """
    found = sketch_range(jacobian, rank + oversample, seed)
    newest = found.rows
    for _ in range(power_iterations):
        before = len(found.basis)
        products = in_double(jacobian.jvp(_orthonormal_rows(newest, jacobian.shape[0])))
        found = extend(jacobian, found, products)
        newest = found.rows[before:]
        if len(newest) == 0:
            break
    return ritz_triplets(found, rank)


def basis_to_track(found: Range, products: Tensor) -> Tensor:
    """An orthonormal basis (at most 2 r, d) for a warm start at the next, similar image. Costs no products.

    It spans the products J v_i (r, d), which are half a power iteration ahead of the range, and up to r more
    directions: the strongest in the rest of the range.
    """
    basis = _new_directions(_empty_basis(found.basis.shape[1]), products)
    u, s, _ = ritz_triplets(found, len(found.basis))
    rest = s[:, None] * (u - u @ basis.T @ basis)
    _, strength, directions = torch.linalg.svd(rest, full_matrices=False)
    keep = strength > numerical_rank_floor(s, u.shape[1])
    return torch.cat([basis, directions[keep][: len(basis)]])


def _empty_basis(embed_dim: int) -> Tensor:
    return torch.zeros(0, embed_dim, dtype=torch.float64, device="cpu")


def in_double(products: Tensor) -> Tensor:
    """Return products with the Jacobian (r, d) on the CPU in float64.

    Raises:
        FloatingPointError: the products are not finite.
    """
    products = products.cpu().double()
    if not products.isfinite().all():
        raise FloatingPointError("the encoder's Jacobian is not finite at this image")
    return products
