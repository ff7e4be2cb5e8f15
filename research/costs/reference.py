"""The exact guided score of one image and its exact gradient, each with a certificate: what "accurate" means.

Everything is exact differentiation, in the encoder's own precision, and linear algebra in float64. Nothing is a
finite difference, and no product or algorithm is shared with the code that is measured against it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from jepa_core import Encoder, differentiable, full_precision

# Small blocks need the fewest products: 44 of each kind on a photo, where blocks of 12 need 72, and all of J is 384.
BLOCK = 4
TOLERANCE = 1e-4
CHUNK = 4  # directions per encoder pass: what a processor's caches hold


class Reference(NamedTuple):
    """Top k singular triplets of J at one image and the gradient of the sum of their logs.

    score: () float64. sigma: (k,) float64, largest first. u: (k, d) float64. v: (k, n).
    grad: (3, S, S), sum_i (1 / sigma_i) grad_x <u_i, J(x) v_i>.
    residual: (k,) float64, |J J^T u_i - sigma_i^2 u_i| / sigma_k^2; divided by the relative gap to the rest
        of the spectrum it bounds the angle between u's span and the true one.
    """

    score: Tensor
    sigma: Tensor
    u: Tensor
    v: Tensor
    grad: Tensor
    residual: Tensor


@contextmanager
def _exact(encoder: Encoder) -> Iterator[None]:
    """Full precision, and the attention kernels that can be differentiated twice and forwards."""
    device = encoder.weight.device
    with differentiable(encoder), full_precision(device), sdpa_kernel(SDPBackend.MATH):
        yield


def _embed(encoder: Encoder, x: Tensor) -> Tensor:
    """f(x): (B, 3, S, S) -> (B, d)."""
    return encoder.model(pixel_values=x).last_hidden_state[:, 0]


def _vjp(embedding: Tensor, x: Tensor, cotangents: Tensor) -> Tensor:
    """cotangents @ J: (r, d) -> (r, n), all from the forward pass that made embedding (1, d) of x (1, 3, S, S)."""
    rows = [
        torch.autograd.grad(embedding, x, part[:, None], retain_graph=True, is_grads_batched=True)[0]
        for part in cotangents.to(embedding).split(CHUNK)
    ]
    return torch.cat(rows).flatten(1)


def _jvp(encoder: Encoder, x: Tensor, tangents: Tensor) -> Tensor:
    """tangents @ J^T: (r, n) -> (r, d), by forward-mode differentiation."""
    point = x.detach()

    def product(tangent: Tensor) -> Tensor:
        return torch.func.jvp(lambda z: _embed(encoder, z), (point,), (tangent,))[1][0]

    with torch.no_grad():
        parts = tangents.reshape(-1, *point.shape).split(CHUNK)
        return torch.cat([torch.func.vmap(product)(part) for part in parts])


def exact_gradient(encoder: Encoder, image: Tensor, u: Tensor, sigma: Tensor, v: Tensor) -> Tensor:
    """Return sum_i (1 / sigma_i) grad_x <u_i, J(x) v_i> by k double backward passes (no finite differences).

    Args:
        image: (3, S, S). u: (k, d). sigma: (k,). v: (k, n).
    """
    total = torch.zeros_like(image, dtype=encoder.weight.dtype)
    with _exact(encoder):
        x = image.detach().to(encoder.weight).clone()[None].requires_grad_()
        embedding = _embed(encoder, x)[0]
        for left, value, right in zip(u.to(embedding), sigma.to(embedding), v.to(embedding), strict=True):
            (row,) = torch.autograd.grad(embedding @ left, x, create_graph=True)
            slope = row.flatten() @ right / value  # <u_i, J v_i> / sigma_i
            (part,) = torch.autograd.grad(slope, x, retain_graph=True)
            total += part[0]
    return total


def dense_triplets(encoder: Encoder, image: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return u (k, d) and sigma (k,) in float64 and v (k, n) from the whole J: d VJPs and a float64 Gram matrix."""
    with _exact(encoder):
        x = image.detach().to(encoder.weight).clone()[None].requires_grad_()
        rows = _vjp(_embed(encoder, x), x, torch.eye(encoder.embed_dim))
    gram = sum(part.double() @ part.double().T for part in rows.split(1 << 14, dim=1))
    assert isinstance(gram, Tensor)
    values, vectors = torch.linalg.eigh(gram)
    u, sigma = vectors.T.flip(0)[:k], values.flip(0)[:k].sqrt()
    return u, sigma, (u / sigma[:, None]).to(rows) @ rows


def converged_triplets(
    encoder: Encoder, image: Tensor, k: int, *, block: int = BLOCK, tolerance: float = TOLERANCE
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return u, sigma, v as dense_triplets does, and their residuals, by block Krylov iteration to convergence.

    The Krylov space of J J^T in R^d (Golub, Underwood, 1977), grown by `block` directions at a time, one VJP and one
    exact JVP each, and orthogonalised against all of it, until the residuals of the top k fall below `tolerance`
    or it is the whole space.

    Returns:
        u (k, d), sigma (k,), v (k, n), residual (k,) as in Reference.
    """
    with _exact(encoder):
        x = image.detach().to(encoder.weight).clone()[None].requires_grad_()
        embedding = _embed(encoder, x)
        embed_dim = encoder.embed_dim
        start = torch.randn(embed_dim, block, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        new = torch.linalg.qr(start).Q.T
        basis = new[:0]
        images = basis.clone()  # J J^T of every basis vector
        rows: list[Tensor] = []
        while True:
            rows.append(_vjp(embedding, x, new))
            images = torch.cat([images, _jvp(encoder, x, rows[-1]).double().cpu()])
            basis = torch.cat([basis, new])
            small = basis @ images.T
            values, vectors = torch.linalg.eigh((small + small.T) / 2)
            weights, squares = vectors.T.flip(0)[:k], values.flip(0)[:k]
            u = weights @ basis
            residual = (weights @ images - squares[:, None] * u).norm(dim=1) / squares[-1]
            if residual.max() < tolerance or len(basis) == embed_dim:
                break
            new = images[-len(new) :]
            for _ in range(2):  # the second projection removes what rounding left of the first
                new = torch.linalg.qr((new - new @ basis.T @ basis).T).Q.T
            new = new[: embed_dim - len(basis)]
        sigma = squares.sqrt()
        parts = (weights / sigma[:, None]).to(rows[0]).split([len(part) for part in rows], dim=1)
        v = torch.stack([part @ row for part, row in zip(parts, rows, strict=True)]).sum(0)
    return u, sigma, v, residual


def reference(encoder: Encoder, image: Tensor, k: int = 9, *, tolerance: float = TOLERANCE) -> Reference:
    """Return the exact guided score and gradient of one preprocessed image (3, S, S).

    A float64 encoder makes it exact to float64.
    """
    u, sigma, v, residual = converged_triplets(encoder, image, k, tolerance=tolerance)
    grad = exact_gradient(encoder, image, u, sigma, v)
    return Reference(sigma.log().sum(), sigma, u, v, grad, residual)


def references(
    folder: Path, encoder: Encoder, images: Mapping[str, Tensor], k: int = 9
) -> dict[str, Reference]:
    """Return the reference of every image {name: (3, S, S)}, made and kept where `folder` lacks it.

    The folder should be named for the encoder; files do not say which one made them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, image in images.items():
        file = folder / f"{name}-k{k}.safetensors"
        kept = load_file(file) if file.exists() else {}
        # a file of another image under the same name is made again
        if "image" not in kept or not torch.equal(kept["image"], image):
            made = reference(encoder, image, k)._asdict() | {"image": image}
            kept = {key: tensor.contiguous() for key, tensor in made.items()}
            unfinished = file.with_suffix(".tmp")
            save_file(kept, unfinished)
            unfinished.replace(file)
        found[name] = Reference(**{key: kept[key] for key in Reference._fields})
    return found


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of two tensors of the same size, in float64."""
    return torch.nn.functional.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0).item()
