"""The encoder's Jacobian at one image as a linear operator: products with it, never the matrix itself."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from .encoder import Encoder
from .precision import has_fast_bfloat16

# Bytes that one encoder pass may keep. On a GPU, memory is scarce, but too few directions per pass leave it waiting for
# kernel launches: a sixteenth of its memory, within these bounds. Total memory, not free memory, so that the same card
# always computes in the same order. CPUs have plenty.
_MEMORY = {"cpu": 2 << 30}
_SCARCE_MEMORY, _MOST_MEMORY = 1 << 29, 2 << 30
# The most directions per pass, however much memory there is. A CPU's caches hold only a few.
_DIRECTIONS = {"cpu": 4}
_MANY_DIRECTIONS = 32
# Devices on which half precision uses forward mode for directional derivatives. On a GPU its many small kernels take
# several times as long as finite differences in full precision.
_FORWARD_MODE = {"cpu"}

# Step of the one-sided differences along unit directions. In float32, 0.005 balances truncation against rounding
# (cosine with the exact gradient 0.99996 or better on photos and generated images); float64 reaches 1e-8.
_STEP = {torch.float32: 5e-3, torch.float64: 1e-5}


def _memory_of_a_pass(device: torch.device) -> int:
    if device.type != "cuda":
        return _MEMORY.get(device.type, _SCARCE_MEMORY)
    total = torch.cuda.get_device_properties(device).total_memory
    return min(_MOST_MEMORY, max(_SCARCE_MEMORY, total // 16))


class JacobianOperator:
    """J (d, n) of the encoder at one preprocessed image, n = 3 * S * S, or clip.

    Use it inside `differentiable(encoder)` and `full_precision(device)`. All products are batched over
    directions, in chunks that fit the memory limit.

    Args:
        encoder: f.
        image: encoder.input_shape, preprocessed.
        half: multiply in bfloat16 where the device is fast at it: on a CPU in all products, with automatic derivatives
            instead of finite differences, which half precision would ruin; on other devices only in VJPs.
        memory: bytes of activations that one encoder pass may keep; None takes 2 GiB on a CPU, a sixteenth of a
            CUDA device's memory, between 512 MiB and 2 GiB, and 512 MiB on other devices.
        chunk: directions per encoder pass; None chooses by memory and device.
        on_pass: called without arguments after every encoder pass; may raise to stop.

    Attributes:
        shape: (d, n).
        chunk: directions in a pass of a product. kept: points whose passes keep their graphs together.
        encoder_calls: forward and backward passes so far, before chunking.
    """

    def __init__(
        self,
        encoder: Encoder,
        image: Tensor,
        *,
        half: bool = False,
        memory: int | None = None,
        chunk: int | None = None,
        on_pass: Callable[[], None] | None = None,
    ) -> None:
        weight = encoder.weight
        device = weight.device.type
        memory = memory or _memory_of_a_pass(weight.device)
        directions = _DIRECTIONS.get(device, _MANY_DIRECTIONS)
        self._encoder = encoder
        # clone: the image may be an inference tensor or already require a gradient
        self._image = image.detach().to(weight.device, weight.dtype).clone()[None].requires_grad_()
        self._half = half and has_fast_bfloat16(weight.device)
        self._by_jvp = self._half and device in _FORWARD_MODE
        # A direction of a product holds one layer's activations at a time. A pass with a graph keeps those of all layers,
        # and the image's own are already kept twice.
        self.chunk = chunk or max(1, min(directions, memory // encoder.layer_bytes))
        self.kept = chunk or max(1, memory // encoder.activation_bytes - 2)
        self._on_pass = on_pass or (lambda: None)
        self._output: Tensor | None = None
        self.shape = (encoder.embed_dim, self._image.numel())
        self.encoder_calls = 0

    def _chunks(self, directions: Tensor) -> Iterator[Tensor]:
        return iter(directions.split(self.chunk))

    def vjp(self, cotangents: Tensor) -> Tensor:
        """Return cotangents @ J: (r, d) -> (r, n). Exact; all backward passes share one forward pass."""
        if self._output is None:
            self.encoder_calls += 1
            self._output = self._encoder(self._image, half=self._half)
            self._on_pass()
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
        products = []
        with torch.no_grad():
            for part in self._chunks(tangents.to(image).reshape(-1, *image.shape[1:])):
                products.append(self._push(image, part))
                self._on_pass()
        return torch.cat(products)

    def curvature(self, v: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Differentiate along v: return J v_i, and a function for Hessian-vector products in the same directions.

        In full precision by one-sided differences along the rows of v. They share the base point, so r Hessian-vector
        products cost r + 1 passes each way and need only plain backward passes. In half precision on a CPU, which
        would ruin differences, by a backward pass through the JVPs.

        Args:
            v: (r, n), unit rows.

        Returns:
            J v_i, (r, d), and a function u (r, d) -> sum_i grad_x <u_i, J(x) v_i>, (n,), which can be called only
            once. It recomputes the forward passes if they do not fit in memory together.
        """
        image = self._image.detach()
        directions = v.reshape(-1, *image.shape[1:])
        if self._by_jvp:
            return self._pullable(directions, self._jvp_with_graph)
        step = _STEP[image.dtype]
        points = torch.cat([image, image + step * directions])
        values, pull = self._pullable(points, self._embed)

        def pull_differences(u: Tensor) -> Tensor:
            return pull(torch.cat([-u.sum(0, keepdim=True), u])) / step

        return (values[1:] - values[:1]) / step, pull_differences

    def _pullable(
        self, inputs: Tensor, compute: Callable[[Tensor, bool], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Compute (leaf, outputs) of `inputs` in chunks; return the outputs and a function cotangents -> leaf gradient."""
        self.encoder_calls += 1
        size = self.kept
        together = len(inputs) <= size
        kept = [compute(part, together) for part in inputs.split(size)]
        outputs = torch.cat([output.detach() for _, output in kept])
        if not together:
            kept.clear()

        def pull(cotangents: Tensor) -> Tensor:
            self.encoder_calls += 1
            total = torch.zeros_like(self._image[0])
            for part, cotangent in zip(inputs.split(size), cotangents.to(outputs).split(size), strict=True):
                leaf, output = kept.pop() if together else compute(part, True)
                (gradient,) = torch.autograd.grad(output, leaf, cotangent)
                self._on_pass()
                total += gradient.sum(0)
            return total.flatten()

        return outputs, pull

    def _embed(self, points: Tensor, grad: bool) -> tuple[Tensor, Tensor]:
        x = points.clone().requires_grad_(grad)
        with self._encoder.fused_attention():
            output = self._encoder(x)
        self._on_pass()
        return x, output

    def _jvp_with_graph(self, tangents: Tensor, grad: bool) -> tuple[Tensor, Tensor]:
        x = self._image.detach().clone().requires_grad_(grad)
        output = self._push(x, tangents)
        self._on_pass()
        return x, output

    def _push(self, x: Tensor, tangents: Tensor) -> Tensor:
        def product(tangent: Tensor) -> Tensor:
            embed = partial(self._encoder, half=self._half)
            return torch.func.jvp(embed, (x,), (tangent[None],))[1][0]

        return torch.func.vmap(product)(tangents)
