"""The encoder's Jacobian at one image as a linear operator: products with it, never the matrix itself."""

import math
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from .encoder import Encoder
from .passes import Function, Pass, Replay, captures
from .precision import has_fast_bfloat16

# Bytes that one encoder pass may keep. On a GPU, memory is scarce, but too few directions per pass leave it waiting for
# kernel launches: a sixteenth of its memory, within these bounds. Total memory, not free memory, so that the same card
# always computes in the same order. CPUs have plenty.
_MEMORY = {"cpu": 2 << 30}
_SCARCE_MEMORY, _MOST_MEMORY = 1 << 29, 2 << 30
# The most directions per pass, however much memory there is. Each pass goes through the image's own activations again,
# but a CPU's caches hold only so much: the activations of one layer in all directions take at most these bytes.
_DIRECTIONS = {"cpu": 16}
_LAYER_MEMORY = {"cpu": 192 << 20}
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


def _directions_of_a_pass(encoder: Encoder, memory: int) -> int:
    """How many directions one pass takes. A direction of a product holds one layer's activations at a time."""
    device = encoder.weight.device.type
    memory = min(memory, _LAYER_MEMORY.get(device, memory))
    return max(1, min(_DIRECTIONS.get(device, _MANY_DIRECTIONS), memory // encoder.layer_bytes))


def images_of_a_pass(encoder: Encoder, rows: int) -> int:
    """How many images may share the VJPs of `rows` rows of J each.

    As many as leave room for the directions that a single image would take, and for the rows. On a CPU, where it brings
    nothing, one image.
    """
    device = encoder.weight.device
    if device.type in _DIRECTIONS:
        return 1
    memory = _memory_of_a_pass(device)
    size = math.prod(encoder.input_shape) * encoder.weight.element_size()
    together = memory // (encoder.layer_bytes * _MANY_DIRECTIONS)
    return max(1, min(together, memory // (encoder.activation_bytes + rows * size)))


def _run(encoder: Encoder, name: Hashable, embed: Function, x: Tensor, replay: Replay | None) -> Pass:
    """Run `embed`, which `name` tells apart from the encoder's other functions, at x."""
    if replay is None or not captures(x):
        return Pass(embed, x)
    weights = (*encoder.model.parameters(), *encoder.model.buffers())
    return replay((name, encoder.frames), embed, x, weights)


class Pullback:
    """VJPs at a batch of preprocessed images, or clips: J_b^T c for every image b and cotangent c.

    All share one forward pass, whose graph is kept. Use it inside `differentiable(encoder)` and `full_precision(device)`.

    Args:
        images: (B, *encoder.input_shape).
        half: see Encoder.forward.
        chunk: directions per backward pass; None chooses by memory and device.
        on_pass: called without arguments after every encoder pass; may raise to stop.
        replay: where passes on CUDA are captured; None runs them all.
    """

    def __init__(
        self,
        encoder: Encoder,
        images: Tensor,
        *,
        half: bool = False,
        chunk: int | None = None,
        on_pass: Callable[[], None] | None = None,
        replay: Replay | None = None,
    ) -> None:
        weight = encoder.weight
        self._chunk = chunk or _directions_of_a_pass(encoder, _memory_of_a_pass(weight.device))
        self._on_pass = on_pass or (lambda: None)
        images = images.detach().to(weight)

        def embed(x: Tensor) -> Tensor:
            with encoder.fused_norms():
                return encoder(x, half=half)

        self._pass = _run(encoder, ("rows", half), embed, images, replay)
        self._size = images[0].numel()
        self._on_pass()

    def __call__(self, cotangents: Tensor) -> Tensor:
        """(r, d) -> (B, r, n)."""
        value = self._pass.value
        rows = value.new_empty(len(value), len(cotangents), self._size)
        for part, place in zip(
            cotangents.to(value).split(self._chunk), rows.split(self._chunk, dim=1), strict=True
        ):
            found = self._pass.pull_each(part[:, None].expand(-1, *value.shape))
            place.copy_(found.flatten(2).transpose(0, 1))
            self._on_pass()
        return rows


class JacobianOperator:
    """J (d, n) of the encoder at one preprocessed image, n = 3 * S * S, or clip.

    Use it inside `differentiable(encoder)` and `full_precision(device)`. All products are batched over
    directions, in chunks that fit the memory limit.

    Args:
        encoder: f.
        image: encoder.input_shape, preprocessed.
        half: multiply in bfloat16 where the device is fast at it: on a CPU in the derivatives alone, all of them
            automatic instead of finite differences, which half precision would ruin; on other devices in VJPs alone.
        memory: bytes of activations that one encoder pass may keep; None takes 2 GiB on a CPU, a sixteenth of a
            CUDA device's memory, between 512 MiB and 2 GiB, and 512 MiB on other devices.
        chunk: directions per encoder pass; None chooses by memory and device.
        on_pass: called without arguments after every encoder pass; may raise to stop.
        replay: where passes on CUDA are captured, of this encoder alone; None runs them all. What one
            operator left in a captured pass is computed again if another has used it since.

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
        replay: Replay | None = None,
    ) -> None:
        weight = encoder.weight
        memory = memory or _memory_of_a_pass(weight.device)
        self._encoder = encoder
        # clone: the image may be an inference tensor
        self._image = image.detach().to(weight.device, weight.dtype).clone()[None]
        self._half = half and has_fast_bfloat16(weight.device)
        self._by_jvp = self._half and weight.device.type in _FORWARD_MODE
        self.chunk = chunk or _directions_of_a_pass(encoder, memory)
        # a pass with a graph keeps the activations of all layers, and the image's own are already kept twice
        self.kept = chunk or max(1, memory // encoder.activation_bytes - 2)
        self._on_pass = on_pass or (lambda: None)
        self._replay = replay
        self._pullback: Pullback | None = None
        self.shape = (encoder.embed_dim, self._image.numel())
        self.encoder_calls = 0

    def vjp(self, cotangents: Tensor) -> Tensor:
        """Return cotangents @ J: (r, d) -> (r, n). Exact; all backward passes share one forward pass."""
        if self._pullback is None:
            self.encoder_calls += 1
            self._pullback = Pullback(
                self._encoder,
                self._image,
                half=self._half,
                chunk=self.chunk,
                on_pass=self._on_pass,
                replay=self._replay,
            )
        self.encoder_calls += 1
        return self._pullback(cotangents)[0]

    def jvp(self, tangents: Tensor) -> Tensor:
        """Return tangents @ J^T: (r, n) -> (r, d). Exact, by forward-mode differentiation."""
        self.encoder_calls += 1
        image = self._image
        products = []
        with torch.no_grad():
            for part in tangents.to(image).reshape(-1, *image.shape[1:]).split(self.chunk):
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
        image = self._image
        directions = v.reshape(-1, *image.shape[1:])
        if self._by_jvp:
            return self._pullable(directions, self._run_jvp)
        step = _STEP[image.dtype]
        points = torch.cat([image, image + step * directions])
        values, pull = self._pullable(points, self._run_points)

        def pull_differences(u: Tensor) -> Tensor:
            return pull(torch.cat([-u.sum(0, keepdim=True), u])) / step

        return (values[1:] - values[:1]) / step, pull_differences

    def _pullable(
        self, inputs: Tensor, run: Callable[[Tensor], Pass]
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Run `inputs` in chunks; return the values, and a function cotangents -> gradient at the image."""
        self.encoder_calls += 1
        parts = inputs.split(self.kept)
        with torch.set_grad_enabled(len(parts) == 1):
            passes = [run(part) for part in parts]
        values = torch.cat([one.value for one in passes])
        if len(parts) > 1:
            passes.clear()

        def pull(cotangents: Tensor) -> Tensor:
            self.encoder_calls += 1
            total = torch.zeros_like(self._image[0])
            for part, cotangent in zip(parts, cotangents.to(values).split(self.kept), strict=True):
                one = passes.pop() if passes else run(part)
                total += one.pull(cotangent).sum(0)
                self._on_pass()
            return total.flatten()

        return values, pull

    def _run_points(self, points: Tensor) -> Pass:
        def embed(x: Tensor) -> Tensor:
            with self._encoder.fused_attention(), self._encoder.fused_norms():
                return self._encoder(x)

        replay = self._replay if torch.is_grad_enabled() else None
        one = _run(self._encoder, "points", embed, points, replay)
        self._on_pass()
        return one

    def _run_jvp(self, tangents: Tensor) -> Pass:
        one = Pass(lambda x: self._push(x, tangents), self._image)
        self._on_pass()
        return one

    def _push(self, x: Tensor, tangents: Tensor) -> Tensor:
        # torch finds the shape of "tangent + no tangent" in Python, for every bias and every scale; a tangent of zeros is
        # added at once
        vectors = {name: weight for name, weight in self._encoder.named_parameters() if weight.ndim == 1}
        zeros = {name: torch.zeros_like(vector) for name, vector in vectors.items()}

        def embed(x: Tensor, vectors: dict[str, Tensor]) -> Tensor:
            return torch.func.functional_call(self._encoder, vectors, (x,), {"half": self._half})

        def product(tangent: Tensor) -> Tensor:
            return torch.func.jvp(embed, (x, vectors), (tangent[None], zeros))[1][0]

        return torch.func.vmap(product)(tangents)
