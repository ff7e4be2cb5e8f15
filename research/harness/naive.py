"""The paper's algorithm (arXiv 2605.24631) the way its authors run it: the slow partner of every comparison.

One image, one direction and one encoder pass at a time, cold at every call, nothing reused that the authors
do not reuse. It shares no code with jepa_core beyond the encoder's weights. Numbers in comments are the
paper's.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from jepa_core import Encoder

# Forward difference along a direction; the authors' value.
STEP = 1e-4
EPS = 1e-6


@dataclass
class Calls:
    """Encoder passes, one image each: plain, with a constant gradient, with a recorded one, differentiations of those."""

    forwards: int = 0
    vjps: int = 0
    vjps_with_graph: int = 0
    double_backwards: int = 0

    @property
    def sequential(self) -> int:
        """All passes, each of which waits for the one before it.

        A double backward counts as what it goes through: every recorded row, and once the forward pass they share.
        """
        double = self.double_backwards * (self.vjps_with_graph + 1)
        return self.forwards + self.vjps + self.vjps_with_graph + double


class NaiveRarity(NamedTuple):
    """score: sum of the logs of s (k,), the top singular values of Q^T J. grad: (3, S, S). basis: Q (d, k + p)."""

    score: float
    s: Tensor
    grad: Tensor
    basis: Tensor
    calls: Calls


class _WideAccumulation(TorchDispatchMode):
    """Multiplies float16 on a processor the way a GPU does: products summed in float32, the result rounded.

    Torch's own float16 products on a processor are forty times slower than float32 ones. Results are those of
    float16; times are not.
    """

    PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        halves = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
        if func.overloadpacket.__name__ not in self.PRODUCTS or halves[0].dtype != torch.float16:
            return func(*args, **kwargs)
        wide = tree_map_only(Tensor, Tensor.float, args)
        return tree_map_only(Tensor, Tensor.half, func(*wide, **kwargs))


@contextmanager
def _embedded(
    encoder: Encoder, image: Tensor, half: torch.dtype | None, calls: Calls
) -> Iterator[tuple[Tensor, Tensor]]:
    """x (1, 3, S, S) and f(x) (1, d), under autocast to `half`, as the authors run SDXL, or in the encoder's dtype."""
    kind = image.device.type
    emulated = half == torch.float16 and kind == "cpu"
    autocast = torch.autocast(kind, dtype=half) if half else nullcontext()
    with torch.enable_grad(), autocast, _WideAccumulation() if emulated else nullcontext():
        x = image.detach().to(encoder.weight).clone()[None].requires_grad_()
        calls.forwards += 1
        yield x, _embed(encoder, x)


def _embed(encoder: Encoder, x: Tensor) -> Tensor:
    """f(x): (1, 3, S, S) -> (1, d). Past Encoder.forward, which would switch autocast off."""
    return encoder.model(pixel_values=x).last_hidden_state[:, 0]


def naive_gradient(
    encoder: Encoder,
    image: Tensor,
    *,
    k: int = 9,
    oversample: int = 2,
    power_iterations: int = 2,
    step: float = STEP,
    seed: int = 0,
    half: torch.dtype | None = None,
) -> NaiveRarity:
    """Return the guided score (section 4.1) and its gradient (section 4.2) of one preprocessed image (3, S, S).

    With k, p, q = 9, 2, 2: 34 forwards, 22 VJPs, 11 VJPs with graph and one double backward.

    Args:
        oversample: p. power_iterations: q. step: of the forward differences.
        half: run under autocast to this dtype. Float16 on a processor is emulated, so its times say nothing.
    """
    calls = Calls()
    rank = k + oversample
    with _embedded(encoder, image, half, calls) as (x, embedding):

        def times(directions: Tensor) -> Tensor:
            """J V by forward differences: (n, r) -> (d, r)."""
            columns = []
            for direction in directions.T:
                with torch.no_grad():
                    moved = _embed(encoder, x + step * direction.reshape(x.shape))
                calls.forwards += 1
                columns.append((moved - embedding.detach())[0] / step)
            return torch.stack(columns, dim=1)

        def transposed_times(cotangents: Tensor) -> Tensor:
            """J^T Q: (d, r) -> (n, r)."""
            columns = []
            for cotangent in cotangents.T:
                (row,) = torch.autograd.grad(embedding, x, cotangent[None].to(embedding), retain_graph=True)
                calls.vjps += 1
                columns.append(row.flatten())
            return torch.stack(columns, dim=1)

        # range finder: a Gaussian sketch, then power iterations with a QR after every product
        generator = torch.Generator().manual_seed(seed)
        sketch = torch.randn(x.numel(), rank, generator=generator, dtype=torch.float64).to(x)
        basis = _orthonormal(times(sketch))
        for _ in range(power_iterations):
            basis = _orthonormal(times(_orthonormal(transposed_times(basis))))

        # Q^T J with Q constant (envelope theorem), one recorded row at a time
        rows = []
        for cotangent in basis.T:
            (row,) = torch.autograd.grad(embedding, x, cotangent[None].to(embedding), create_graph=True)
            calls.vjps_with_graph += 1
            rows.append(row.flatten())
        projected = torch.stack(rows).to(image.dtype)
        # JS* = sum of the logs of the top k singular values of Q^T J, differentiated through the small SVD
        s = torch.linalg.svdvals(projected)[:k]
        score = s.clamp(min=EPS).log().sum()
        (grad,) = torch.autograd.grad(score, x)
        calls.double_backwards += 1
    return NaiveRarity(score.item(), s.detach(), grad[0].detach(), basis.detach(), calls)


def _orthonormal(columns: Tensor) -> Tensor:
    """Orthonormal columns of the same span, in float32 or better (there is no QR in half precision)."""
    return torch.linalg.qr(columns.to(torch.promote_types(columns.dtype, torch.float32))).Q


def naive_score(
    encoder: Encoder, image: Tensor, calls: Calls | None = None, half: torch.dtype | None = None
) -> float:
    """Return the JEPA score of one preprocessed image (3, S, S) (eq. 3): d VJPs in turn, then the SVD of the whole J.

    calls counts the encoder passes; half: run under autocast to this dtype.
    """
    calls = calls or Calls()
    with _embedded(encoder, image, half, calls) as (x, embedding):
        rows = []
        for output in embedding[0]:
            (row,) = torch.autograd.grad(output, x, retain_graph=True)
            calls.vjps += 1
            rows.append(row.flatten())
        jacobian = torch.stack(rows)
    return torch.linalg.svdvals(jacobian).clamp(min=EPS).log().sum().item()
