"""D-JEPA's networks (Denoising with a Joint-Embedding Predictive Architecture, arXiv 2410.03755).

An image is a set of N continuous tokens in row-major order. The context encoder phi sees the known tokens, the
feature predictor gamma predicts a feature z_i for each unknown token, and the denoising head draws token i from
p(x_i | z_i). In training a target encoder, the exponential moving average of phi, sees all tokens and provides the
features that gamma learns to predict; see losses.py.

Sequences are built by index: `places` (B, V) holds the positions in the image of the rows of `tokens` (B, V, w).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import isqrt
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import DJEPAConfig

EPSILON = 1e-6
TIME_FREQUENCIES = 128
LONGEST_PERIOD = 10_000.0
# modulations computed at once: 64 MiB in float32
MODULATION_ENTRIES = 1 << 24


def to_tokens(latents: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) -> (B, N, C * patch^2) in row-major order; a token's entries run over channels, rows, columns."""
    return F.pixel_unshuffle(latents, patch).flatten(2).transpose(1, 2)


def to_latents(tokens: Tensor, patch: int) -> Tensor:
    """The inverse of to_tokens for square latents: (B, N, C * patch^2) -> (B, C, H, W)."""
    side = isqrt(tokens.shape[1])
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (side, side)), patch)


class Attention(nn.Module):
    """Multi-head attention with RMS-normalised queries and keys."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.RMSNorm(width // heads, eps=EPSILON)
        self.k_norm = nn.RMSNorm(width // heads, eps=EPSILON)
        self.proj = nn.Linear(width, width)
        self.dropout = dropout

    def forward(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """x (B, T, width) -> the same shape; with `queries` (B, M), only those M rows, (B, M, width).

        Every row attends to all T rows.
        """
        width = x.shape[-1]
        if queries is None:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
        else:
            q = F.linear(take(x, queries), self.qkv.weight[:width], self.qkv.bias[:width])
            k, v = F.linear(x, self.qkv.weight[width:], self.qkv.bias[width:]).chunk(2, dim=-1)
        q, k, v = (rows.unflatten(-1, (self.heads, -1)).transpose(1, 2) for rows in (q, k, v))
        # in the precision of the weights, even under autocast
        exact = self.q_norm.weight.dtype
        q, k = self.q_norm(q.to(exact)).to(v.dtype), self.k_norm(k.to(exact)).to(v.dtype)
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return F.dropout(self.proj(mixed.transpose(1, 2).flatten(2)), self.dropout, self.training)


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPSILON)
        self.attn = Attention(width, heads, dropout)
        self.norm2 = nn.LayerNorm(width, eps=EPSILON)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        self.dropout = dropout

    def forward(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """x (B, T, width) -> the same shape; with `queries` (B, M), only those M rows, (B, M, width)."""
        mixed = self.attn(self.norm1(x), queries)
        x = (x if queries is None else take(x, queries)) + mixed
        hidden = F.dropout(F.gelu(self.fc1(self.norm2(x))), self.dropout, self.training)
        return x + F.dropout(self.fc2(hidden), self.dropout, self.training)


class ContextEncoder(nn.Module):
    """phi: the features of the known tokens, and of the buffer tokens that carry the class."""

    def __init__(self, config: DJEPAConfig, dropout: float) -> None:
        super().__init__()
        width = config.width
        self.embed = nn.Linear(config.token_width, width)
        self.position = nn.Parameter(torch.empty(1, config.tokens, width))
        self.buffer = nn.Parameter(torch.empty(1, config.buffer, width))
        self.classes = nn.Embedding(config.classes + 1, width)
        self.embed_norm = nn.LayerNorm(width, eps=EPSILON)
        self.blocks = nn.ModuleList(Block(width, config.heads, dropout) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=EPSILON)

    def forward(self, tokens: Tensor, places: Tensor, labels: Tensor) -> Tensor:
        """tokens (B, V, w), places (B, V), labels (B,) in 0..classes -> (B, buffer + V, width)."""
        x = self.embed(tokens) + take(self.position.expand(len(tokens), -1, -1), places)
        buffer = self.buffer + self.classes(labels)[:, None]
        x = self.embed_norm(torch.cat([buffer, x], dim=1))
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class FeaturePredictor(nn.Module):
    """gamma: the features z of tokens that the context encoder has not seen."""

    def __init__(self, config: DJEPAConfig, dropout: float) -> None:
        super().__init__()
        width = config.width
        self.embed = nn.Linear(width, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.position = nn.Parameter(torch.empty(1, config.tokens, width))
        self.blocks = nn.ModuleList(Block(width, config.heads, dropout) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=EPSILON)

    def forward(self, context: Tensor, places: Tensor, wanted: Tensor) -> Tensor:
        """Context (B, buffer + V, width) of the tokens at places (B, V), wanted (B, M) -> z (B, M, width).

        The sequence has all tokens, with a mask token at each unknown one. The last block computes only the wanted
        rows, which gives the same result as computing all of them.
        """
        x = self.embed(context)
        buffer, known = x.split([x.shape[1] - places.shape[1], places.shape[1]], dim=1)
        image = self.mask_token.to(x.dtype).expand(len(x), self.position.shape[1], -1)
        image = image.scatter(1, places[..., None].expand_as(known), known) + self.position
        x = torch.cat([buffer.to(image.dtype), image], dim=1)
        *before, last = self.blocks
        for block in before:
            x = block(x)
        return self.norm(last(x, wanted + buffer.shape[1]))


class ModulatedBlock(nn.Module):
    """A residual MLP block of the denoising head, with normalisation modulated by time and z (AdaLN)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, width)
        self.modulation = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """x (T, width), the output of self.modulation (T, 3 width) -> (T, width)."""
        shift, scale, gate = modulation.chunk(3, dim=-1)
        return x + gate * self.fc2(F.silu(self.fc1(self.norm(x) * (1 + scale) + shift)))


class DenoisingHead(nn.Module):
    """The MLP that denoises a token, given its feature z and the time."""

    def __init__(self, config: DJEPAConfig) -> None:
        super().__init__()
        width = config.head_width
        self.time1 = nn.Linear(2 * TIME_FREQUENCIES, width)
        self.time2 = nn.Linear(width, width)
        self.condition = nn.Linear(config.width, width)
        self.embed = nn.Linear(config.token_width, width)
        self.blocks = nn.ModuleList(ModulatedBlock(width) for _ in range(config.head_depth))
        self.norm = nn.LayerNorm(width, eps=EPSILON, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        entries = 2 * config.token_width if config.denoiser == "diffusion" else config.token_width
        self.out = nn.Linear(width, entries)

    def embed_time(self, time: Tensor) -> Tensor:
        """time (T,), 0 to 1000 -> (T, width)."""
        steps = torch.arange(TIME_FREQUENCIES, dtype=torch.float32, device=time.device) / TIME_FREQUENCIES
        angle = time.float()[:, None] * LONGEST_PERIOD**-steps
        waves = torch.cat([angle.cos(), angle.sin()], dim=-1).to(self.time1.weight.dtype)
        return self.time2(F.silu(self.time1(waves)))

    def modulation_layers(self) -> list[nn.Linear]:
        """The modulation layer of each block, and of the last normalisation."""
        blocks = cast("Iterable[ModulatedBlock]", self.blocks)
        return [*(block.modulation for block in blocks), self.modulation]

    def modulations(self, times: Tensor, condition: Tensor) -> Iterator[list[Tensor]]:
        """For each time, the modulations of the blocks and the last layer, as `denoise` takes them.

        The condition is the same at every step of a token's denoising, so the modulations of many times are computed
        at once: their layers hold more than half of the head's weights, which are then read once instead of at each
        step.

        Args:
            times: (times, width), from embed_time.
            condition: (T, width), self.condition(z).
        """
        layers = self.modulation_layers()
        entries = len(condition) * sum(layer.out_features for layer in layers)
        at_once = max(1, MODULATION_ENTRIES // entries)
        for some in times.split(at_once):
            active = F.silu(some[:, None] + condition)
            yield from map(list, zip(*(layer(active) for layer in layers), strict=True))

    def denoise(self, x: Tensor, modulations: list[Tensor]) -> Tensor:
        """x (T, w), the modulations at one time -> (T, w), twice as wide for diffusion."""
        *inner, last = modulations
        x = self.embed(x)
        for block, modulation in zip(self.blocks, inner, strict=True):
            x = block(x, modulation)
        shift, scale = last.chunk(2, dim=-1)
        return self.out(self.norm(x) * (1 + scale) + shift)

    def forward(self, x: Tensor, time: Tensor, z: Tensor) -> Tensor:
        """Noisy tokens x (T, w), time (T,) from 0 to 1000, z (T, width of the predictor) -> as `denoise`."""
        condition = F.silu(self.embed_time(time) + self.condition(z))
        return self.denoise(x, [layer(condition) for layer in self.modulation_layers()])


class FeatureProjection(nn.Module):
    """The MLP from z to the target encoder's features; used only in training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.norm = nn.LayerNorm(4 * width, eps=EPSILON)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, z: Tensor) -> Tensor:
        """(B, M, width) -> the same shape."""
        return self.fc2(self.norm(F.gelu(self.fc1(z))))


class DJEPA(nn.Module):
    """Context encoder, feature predictor, denoising head, and the projection for the JEPA loss.

    Args:
        config: the sizes.
        dropout: of attention and of the transformers' MLPs, in training.
    """

    def __init__(self, config: DJEPAConfig, dropout: float = 0.1) -> None:
        super().__init__()
        self.config = config
        self.context_encoder = ContextEncoder(config, dropout)
        self.predictor = FeaturePredictor(config, dropout)
        self.head = DenoisingHead(config)
        self.projection = FeatureProjection(config.width)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        encoder, predictor, head = self.context_encoder, self.predictor, self.head
        for table in (encoder.position, encoder.buffer, encoder.classes.weight):
            nn.init.normal_(table, std=0.02)
        for table in (predictor.position, predictor.mask_token, head.time1.weight, head.time2.weight):
            nn.init.normal_(table, std=0.02)
        # zero output at the start, as in DiT
        for layer in (*head.modulation_layers(), head.out):
            nn.init.zeros_(layer.weight)

    def features(self, tokens: Tensor, places: Tensor, labels: Tensor, wanted: Tensor) -> Tensor:
        """z of the tokens at `wanted` (B, M), given the tokens at `places` (B, V): (B, M, width)."""
        return self.predictor(self.context_encoder(tokens, places, labels), places, wanted)


def take(rows: Tensor, index: Tensor) -> Tensor:
    """rows (B, T, d), index (B, M) -> rows[b, index[b, m]], (B, M, d)."""
    return rows.gather(1, index[..., None].expand(-1, -1, rows.shape[-1]))
