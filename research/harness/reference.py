"""The exact guided score of one image and its exact gradient: what "accurate" means.

Exact differentiation in the encoder's own precision, of the whole Jacobian, and linear algebra in float64. Nothing is a
finite difference, and no product or algorithm is shared with the code that is measured against it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from jepa_core import Encoder, differentiable, full_precision
from research.harness.program import kept

CHUNK = 4  # directions per encoder pass: what a processor's caches hold


class Reference(NamedTuple):
    """Top k singular triplets of J at one image and the gradient of the sum of their logs.

    score: () float64. s: (k,) float64, largest first. u: (k, d) float64. v: (k, n).
    grad: (3, S, S), sum_i (1 / s_i) grad_x <u_i, J(x) v_i>.
    """

    score: Tensor
    s: Tensor
    u: Tensor
    v: Tensor
    grad: Tensor


@contextmanager
def _embedded(encoder: Encoder, image: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """x (1, 3, S, S) and f(x) (d,), to be differentiated in the block, twice if need be."""
    device = encoder.weight.device
    with differentiable(encoder), full_precision(device), sdpa_kernel(SDPBackend.MATH):
        x = image.detach().to(encoder.weight).clone()[None].requires_grad_()
        yield x, encoder.model(pixel_values=x).last_hidden_state[0, 0]


def exact_gradient(encoder: Encoder, image: Tensor, u: Tensor, s: Tensor, v: Tensor) -> Tensor:
    """Return sum_i (1 / s_i) grad_x <u_i, J(x) v_i> by k double backward passes (no finite differences).

    Args:
        image: (3, S, S). u: (k, d). s: (k,). v: (k, n).
    """
    total = torch.zeros_like(image, dtype=encoder.weight.dtype)
    with _embedded(encoder, image) as (x, embedding):
        for left, value, right in zip(u.to(embedding), s.to(embedding), v.to(embedding), strict=True):
            (row,) = torch.autograd.grad(embedding @ left, x, create_graph=True)
            (part,) = torch.autograd.grad(row.flatten() @ right / value, x, retain_graph=True)
            total += part[0]
    return total


def triplets(encoder: Encoder, image: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return u (k, d) and s (k,) in float64 and v (k, n) from the whole J: d VJPs and a float64 Gram matrix."""
    with _embedded(encoder, image) as (x, embedding):
        parts = [
            torch.autograd.grad(embedding, x, part, retain_graph=True, is_grads_batched=True)[0]
            for part in torch.eye(encoder.embed_dim).to(embedding).split(CHUNK)
        ]
    rows = torch.cat(parts).flatten(1)
    gram = torch.stack([part.double() @ part.double().T for part in rows.split(1 << 14, dim=1)]).sum(0)
    values, vectors = torch.linalg.eigh(gram)
    u, s = vectors.T.flip(0)[:k], values.flip(0)[:k].sqrt()
    return u, s, (u / s[:, None]).to(rows) @ rows


def reference(encoder: Encoder, image: Tensor, k: int = 9) -> Reference:
    """Return the exact guided score and gradient of one preprocessed image (3, S, S).

    A float64 encoder makes it exact to float64.
    """
    u, s, v = triplets(encoder, image, k)
    return Reference(s.log().sum(), s, u, v, exact_gradient(encoder, image, u, s, v))


def references(
    folder: Path, encoder: Encoder, images: Mapping[str, Tensor], k: int = 9
) -> dict[str, Reference]:
    """Return the reference of every image {name: (3, S, S)}, made and kept where `folder`, one an encoder, lacks it."""
    found = {}
    for name, image in images.items():
        file = folder / f"{name}-dense-k{k}.safetensors"
        content = kept(file, lambda image=image: reference(encoder, image, k)._asdict(), image)  # type: ignore[misc]
        found[name] = Reference(**{key: content[key] for key in Reference._fields})
    return found


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of two tensors of the same size, in float64."""
    return torch.nn.functional.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0).item()
