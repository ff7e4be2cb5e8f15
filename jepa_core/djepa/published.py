"""Weights in the layout of the paper's public code: their names and sizes converted to this project's.

The layout was taken from that code and has never been tried with published weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from .config import DJEPAConfig, DJEPASizeError

# The scale of the paper's latents, from the autoencoder KL-16.
KL16_SCALE = 0.2325

# From the names in the paper's public code to ours: prefixes, then parts inside a name.
_PREFIXES = {
    "z_proj.": "context_encoder.embed.",
    "z_proj_ln.": "context_encoder.embed_norm.",
    "buffer": "context_encoder.buffer",
    "encoder_pos_embed_learned": "context_encoder.position",
    "encoder_blocks.": "context_encoder.blocks.",
    "encoder_norm.": "context_encoder.norm.",
    "decoder_embed.": "predictor.embed.",
    "mask_token": "predictor.mask_token",
    "decoder_pos_embed_learned": "predictor.position",
    "decoder_blocks.": "predictor.blocks.",
    "decoder_norm.": "predictor.norm.",
    "diffloss.net.time_embed.mlp.0.": "head.time1.",
    "diffloss.net.time_embed.mlp.2.": "head.time2.",
    "diffloss.net.cond_embed.": "head.condition.",
    "diffloss.net.input_proj.": "head.embed.",
    "diffloss.net.res_blocks.": "head.blocks.",
    "diffloss.net.final_layer.adaLN_modulation.1.": "head.modulation.",
    "diffloss.net.final_layer.linear.": "head.out.",
}
_PARTS = {
    ".mlp.fc1.": ".fc1.",
    ".mlp.fc2.": ".fc2.",
    ".in_ln.": ".norm.",
    ".mlp.0.": ".fc1.",
    ".mlp.2.": ".fc2.",
    ".adaLN_modulation.1.": ".modulation.",
}


def is_published(names: Iterable[str]) -> bool:
    """Whether names of tensors are those of the public layout."""
    return any("encoder_pos_embed_learned" in name for name in names)


def from_published(tensors: Mapping[str, Tensor]) -> tuple[DJEPAConfig, dict[str, Tensor]]:
    """The sizes, and the tensors under this project's names.

    The exponential moving average, `model_ema.`, is preferred to `model.`.

    Raises:
        ValueError: tensors that do not fit the layout. The message lacks the name of the file.
    """
    for prefix in ("model_ema.", "model."):
        if any(name.startswith(prefix) for name in tensors):
            tensors = {
                name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)
            }
            break
    renamed: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if name.startswith("jepaloss.") or name in ("class_emb.weight", "fake_latent"):
            continue
        begin = next((part for part in _PREFIXES if name.startswith(part)), None)
        if begin is None:
            raise ValueError(f"holds {name:.100}, which is not in the layout of the paper's public code")
        ours = _PREFIXES[begin] + name.removeprefix(begin)
        for there, here in _PARTS.items():
            ours = ours.replace(there, here)
        renamed[ours] = value
    try:
        classes = tensors["class_emb.weight"]
        renamed["context_encoder.classes.weight"] = torch.cat(
            [classes, tensors["fake_latent"].reshape(1, -1)]
        )
        config = _sizes(renamed, len(classes))
    except (KeyError, IndexError, RuntimeError, ZeroDivisionError, DJEPASizeError) as error:
        raise ValueError(
            f"has the layout of the paper's public code, but its tensors do not form a model ({error!s:.200}); "
            "weights trained without normalised queries and keys, or with patches, are not supported"
        ) from error
    return config, renamed


def _sizes(tensors: Mapping[str, Tensor], classes: int) -> DJEPAConfig:
    """The sizes of a model, read from tensors of the public layout under this project's names."""

    def count(blocks: str) -> int:
        pattern = re.compile(re.escape(blocks) + r"(\d{1,3})\.")
        return len({found[1] for name in tensors if (found := pattern.match(name))})

    width, channels = tensors["context_encoder.embed.weight"].shape
    if len(tensors["head.out.bias"]) != 2 * channels:
        raise DJEPASizeError("its denoiser is not diffusion; flow matching is not supported in this layout")
    return DJEPAConfig(
        side=round(tensors["context_encoder.position"].shape[1] ** 0.5),
        channels=channels,
        classes=classes,
        width=width,
        depth=count("context_encoder.blocks."),
        heads=width // len(tensors["context_encoder.blocks.0.attn.q_norm.weight"]),
        head_width=len(tensors["head.embed.bias"]),
        head_depth=count("head.blocks."),
        buffer=tensors["context_encoder.buffer"].shape[1],
    )
