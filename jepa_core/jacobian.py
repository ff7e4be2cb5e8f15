"""The encoder's Jacobian at one image as an operator: products with it, never the matrix."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .encoder import Encoder

_MEMORY = 2 << 30  # bytes that one encoder pass may keep; decides the default chunk

# Step of the one-sided difference along unit directions. float32: 0.02 balances curvature against rounding
# (cosine 0.99999 with the exact product); float64 reaches 1e-8.
_STEP = {torch.float32: 2e-2, torch.float64: 1e-5}


class JacobianOperator:
    """J (d, n) of the encoder at one preprocessed image, n = 3 * S * S.

    Use it inside `differentiable(encoder)` and `full_precision(device)`. All products are batched over
    directions, `chunk` of them to an encoder pass.

    Args:
        encoder: f.
        image: (3, S, S), preprocessed.
        chunk: directions per encoder pass; None takes what fits 2 GiB of activations.
        on_pass: called without arguments after every encoder pass; may raise to stop.

    Attributes:
        shape: (d, n).
        embedding: f(image), (d,).
        encoder_calls: forward and backward passes so far, counted before chunking.
    """

    def __init__(
        self,
        encoder: Encoder,
        image: Tensor,
        *,
        chunk: int | None = None,
        on_pass: Callable[[], None] | None = None,
    ) -> None:
        weight = encoder.weight
        self._encoder = encoder
        # clone: the image may be an inference tensor or need gradients of its own
        self._image = image.detach().to(weight.device, weight.dtype).clone()[None].requires_grad_()
        self._chunk = chunk or max(1, min(32, _MEMORY // encoder.activation_bytes))
        self._on_pass = on_pass or (lambda: None)
        self.shape = (encoder.embed_dim, self._image.numel())
        self.encoder_calls = 1
        self._output = encoder(self._image)
        self._on_pass()
        self.embedding = self._output.detach()[0]

    def _chunks(self, directions: Tensor) -> Iterator[Tensor]:
        return iter(directions.split(self._chunk))

    def vjp(self, cotangents: Tensor) -> Tensor:
        """Return the rows cotangents @ J: (r, d) -> (r, n). Exact; the backward passes share one forward."""
        self.encoder_calls += 1
        rows = []
        for part in self._chunks(cotangents.to(self._output)):
            (row,) = torch.autograd.grad(
                self._output, self._image, part[:, None], retain_graph=True, is_grads_batched=True
            )
            rows.append(row.reshape(len(part), -1))
            self._on_pass()
        return torch.cat(rows)

    def jvp(self, tangents: Tensor) -> Tensor:
        """Return tangents @ J^T: (r, n) -> (r, d). Exact, by forward-mode differentiation."""
        self.encoder_calls += 1
        image = self._image.detach()

        def product(tangent: Tensor) -> Tensor:
            return torch.func.jvp(self._encoder, (image,), (tangent,))[1][0]

        products = []
        with torch.no_grad():
            for part in self._chunks(tangents.reshape(-1, *image.shape)):
                products.append(torch.func.vmap(product)(part))
                self._on_pass()
        return torch.cat(products)

    def curvature(self, u: Tensor, v: Tensor, vjp_u: Tensor) -> tuple[Tensor, Tensor]:
        """Return the Hessian-vector products grad_x <u_i, J(x) v_i> and, from the same passes, J v_i.

        One-sided differences of exact gradients along the unit directions v_i.

        Args:
            u: (k, d).
            v: (k, n), unit rows.
            vjp_u: (k, n), u @ J at the image, which a range finder already has.

        Returns:
            (k, n) and (k, d).
        """
        self.encoder_calls += 2
        step = _STEP[self._image.dtype]
        gradients, products = [], []
        for rows in torch.arange(len(u), device=v.device).split(self._chunk):
            points = self._image.detach() + step * v[rows].reshape(-1, *self._image.shape[1:])
            points.requires_grad_()
            outputs = self._encoder(points)
            self._on_pass()
            (shifted,) = torch.autograd.grad(outputs, points, u[rows].to(outputs))
            self._on_pass()
            gradients.append((shifted.flatten(1) - vjp_u[rows]) / step)
            products.append((outputs.detach() - self.embedding) / step)
        return torch.cat(gradients), torch.cat(products)
