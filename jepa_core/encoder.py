"""The encoder: preprocessed images in, embeddings out."""

import copy
import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from .architectures import ARCHITECTURES, Pixels
from .ordered_attention import ordered_attention
from .precision import full_precision, half_precision
from .resize import resize

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def _plain_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """Attention from elementary operations in the dtype of its inputs; query, key, value (B, heads, N, d)."""
    scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
    # not "* scaling": see _LayerNorm
    weights = torch.ops.aten.mul.Scalar(query @ key.transpose(-1, -2), scaling).softmax(-1)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def _ordered_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Fused attention with an ordered backward pass; query, key, value (B, heads, N, d)."""
    return ordered_attention(query, key, value, scale=kwargs.get("scaling")).transpose(
        1, 2
    ).contiguous(), None


# Instead of transformers' eager attention, whose softmax some models compute in float32, which would spoil float64
# encoders, and whose scaling takes long in forward mode.
PLAIN_ATTENTION = "jepa_plain"
ORDERED_ATTENTION = "jepa_ordered"


@cache
def register_attention() -> None:
    """Make both known to transformers. Not at import: transformers' models take seconds to import."""
    transformers.AttentionInterface.register(PLAIN_ATTENTION, _plain_attention)
    transformers.AttentionInterface.register(ORDERED_ATTENTION, _ordered_attention)


class _PatchEmbedding(nn.Module):
    """A convolution whose stride is its kernel, as one matrix product; it takes over the convolution's weights.

    On CUDA a convolution's backward pass adds up in another order each time, unless a switch of the whole process is set.
    """

    weight: Tensor
    bias: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, [T,] H, W) -> (B, width, [t,] h, w)."""
        kernel = self.weight.shape[2:]
        for axis, side in enumerate(kernel):
            x = x.unflatten(2 + 2 * axis, (-1, side))
        axes = range(len(kernel))
        x = x.permute(0, *(2 + 2 * axis for axis in axes), 1, *(3 + 2 * axis for axis in axes))
        patches = x.flatten(1 + len(kernel))
        return F.linear(patches, self.weight.flatten(1), self.bias).movedim(-1, 1)


def _embeds_patches(module: nn.Module) -> bool:
    """Whether a module is a convolution that looks at every number once."""
    return type(module) in (nn.Conv2d, nn.Conv3d) and module.kernel_size == module.stride


class _LayerNorm(nn.LayerNorm):
    """LayerNorm from elementary operations, so that derivatives of every order and mode are correct.

    A backward pass through the forward-mode derivative of torch's layer_norm silently drops terms: the gradient of
    the guided score then has a cosine of 0.77 with the correct one (torch 2.14). A plain backward pass may use it.
    """

    fused = False

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            return super().forward(x.to(self.weight.dtype))
        centred = x - x.mean(-1, keepdim=True)
        # not "+ eps": torch would make a tensor of the number, without a tangent; see JacobianOperator
        scale = torch.rsqrt(torch.ops.aten.add.Scalar(centred.square().mean(-1, keepdim=True), self.eps))
        return centred * scale * self.weight + self.bias


class Encoder(nn.Module):
    """A frozen JEPA encoder f: preprocessed images (B, 3, S, S) -> embeddings (B, d).

    For architectures that see motion also preprocessed clips (B, T, 3, S, S) -> (B, d); see of_clips.

    architectures.py defines each architecture's embedding. Weights are float32 or float64.

    Args:
        model: an instance of a model class in ARCHITECTURES.
        image_size: S in pixels, a multiple of the patch size.
        pixels: how pixels are prepared; None takes the architecture's published values.

    Attributes:
        embed_dim: d, the length of an embedding.
        image_size: S.
        frames: T, or None for images.
        architecture: a row of ARCHITECTURES.
    """

    def __init__(self, model: "PreTrainedModel", image_size: int, pixels: Pixels | None = None) -> None:
        super().__init__()
        register_attention()
        self.model = model
        self.architecture = ARCHITECTURES[model.config.model_type]
        for part in self.architecture.unneeded:
            if part.endswith("."):  # a whole submodule that embedding does not use
                setattr(model, part[:-1], None)
        self.pixels = pixels or self.architecture.pixels
        self.image_size = checked_image_size(image_size, model.config)
        self.frames: int | None = None
        self.embed_dim: int = getattr(model.config, self.architecture.width)
        for module in model.modules():
            if type(module) is nn.LayerNorm:
                module.__class__ = _LayerNorm
            elif _embeds_patches(module):
                module.__class__ = _PatchEmbedding

    def at_size(self, image_size: int) -> "Encoder":
        """The same encoder for images of another size, sharing the weights.

        Raises:
            ValueError: image_size is not a multiple of the patch size.
        """
        other = copy.copy(self)
        other.image_size = checked_image_size(image_size, self.model.config)
        return other

    def of_clips(self, frames: int) -> "Encoder":
        """The same encoder for clips of `frames` frames instead of images, sharing the weights.

        Raises:
            ValueError: the architecture takes only single images, or frames is less than 1.
        """
        if self.architecture.embed_clip is None or frames < 1:
            raise ValueError(f"{self.architecture.title} takes single images, not clips of {frames} frames")
        other = copy.copy(self)
        other.frames = frames
        return other

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one preprocessed image, (3, S, S), or clip, (T, 3, S, S)."""
        image = (3, self.image_size, self.image_size)
        return image if self.frames is None else (self.frames, *image)

    @property
    def weight(self) -> Tensor:
        """One of the weights, for the encoder's dtype and device."""
        return next(self.model.parameters())

    @cached_property
    def fingerprint(self) -> str:
        """A hash of some of every weight's numbers, which tells fine-tuned versions of a checkpoint apart."""
        digest = hashlib.sha256(self.architecture.title.encode())
        for name, weight in sorted(self.model.state_dict().items()):
            if weight.is_floating_point():
                numbers = weight.flatten()[:: 1 + weight.numel() // 1000].cpu().double()
                digest.update(name.encode() + numbers.numpy().tobytes())
        return digest.hexdigest()

    @property
    def activation_bytes(self) -> int:
        """Estimated bytes that one image's forward pass saves for its backward pass, with fused attention."""
        config: Any = self.model.config
        return config.num_hidden_layers * self._tokens * 16 * config.hidden_size * self.weight.element_size()

    @property
    def layer_bytes(self) -> int:
        """Estimated bytes of one layer's activations, attention weights included."""
        config: Any = self.model.config
        per_token = 15 * config.hidden_size + 3 * config.num_attention_heads * self._tokens
        return self._tokens * per_token * self.weight.element_size()

    @property
    def _tokens(self) -> int:
        tubelets = math.ceil((self.frames or 1) / getattr(self.model.config, "tubelet_size", 1))
        return tubelets * (self.image_size // self.model.config.patch_size) ** 2 + 5

    def forward(self, x: Tensor, *, half: bool = False) -> Tensor:
        """Embed preprocessed images or clips x (B, *input_shape); returns (B, d) in the encoder's dtype.

        Args:
            half: matrix products in half precision where the device is fast at it; see half_precision.
        """
        with half_precision(x.device) if half else full_precision(x.device):
            embed = self.architecture.embed if self.frames is None else self.architecture.embed_clip
            assert embed is not None  # of_clips checked it
            embedding = embed(self.model, x.to(self.weight.dtype))
        return embedding.to(self.weight.dtype)

    @contextmanager
    def fused_norms(self) -> Iterator[None]:
        """Use torch's LayerNorm: one kernel instead of ten, but it supports only a plain backward pass."""
        norms = [module for module in self.model.modules() if isinstance(module, _LayerNorm)]
        for norm in norms:
            norm.fused = True
        try:
            yield
        finally:
            for norm in norms:
                norm.fused = False

    @contextmanager
    def fused_attention(self) -> Iterator[None]:
        """Use torch's fused attention kernels: less memory, but they support only a plain backward pass.

        On CUDA only forward; torch's own backward kernels would add up in another order each time.
        """
        config: Any = self.model.config
        before = config._attn_implementation
        self.model.set_attn_implementation(ORDERED_ATTENTION if self.weight.is_cuda else "sdpa")
        try:
            yield
        finally:
            self.model.set_attn_implementation(before)

    def preprocess(self, images: Tensor, *, fit: str = "squash", antialias: bool = True) -> Tensor:
        """Resize and normalise images as in the encoder's training. Differentiable.

        Args:
            images: (B, H, W, 3) in [0, 1], or clips (B, T, H, W, 3).
            fit: "squash" resizes both sides to S (the paper's choice); "crop" first cuts the centre square.
            antialias: low-pass before shrinking. False is the resize of the authors' code.

        Returns:
            (B, *input_shape) normalised; float64 stays float64, anything else becomes float32.

        Raises:
            ValueError: images of another shape, or an unknown fit.
        """
        if self.frames is not None:
            if images.ndim != 5 or images.shape[1] != self.frames:
                shape = tuple(images.shape)
                raise ValueError(f"clips must be (batch, {self.frames}, height, width, 3), got {shape}")
            flat = self.at_size(self.image_size)
            flat.frames = None
            return flat.preprocess(images.flatten(0, 1), fit=fit, antialias=antialias).unflatten(
                0, (-1, self.frames)
            )
        if images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape:
            raise ValueError(f"images must be (batch, height, width, 3), got {tuple(images.shape)}")
        x = images.movedim(-1, 1)
        x = x if x.dtype == torch.float64 else x.float()
        if fit == "crop":
            height, width = x.shape[-2:]
            side = min(height, width)
            top, left = (height - side) // 2, (width - side) // 2
            x = x[..., top : top + side, left : left + side]
        elif fit != "squash":
            raise ValueError(f"fit must be 'squash' or 'crop', got {fit!r}")
        size = (self.image_size, self.image_size)
        mode = self.pixels.interpolation
        x = resize(x, size, mode=mode, antialias=antialias)
        if mode == "bicubic":
            x = x.clamp(0, 1)  # bicubic overshoots at edges, which saved images cannot
        return self.pixels.normalised(x)


def checked_image_size(image_size: int, config: Any) -> int:
    """Return image_size. Raises ValueError unless it is a positive multiple of the patch size."""
    if image_size < config.patch_size or image_size % config.patch_size:
        raise ValueError(
            f"image_size must be a multiple of the patch size {config.patch_size}, got {image_size}"
        )
    return image_size
