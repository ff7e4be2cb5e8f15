"""Guides a MODEL with the settings of a test, or with a gradient that the test defines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import torch
from jepa_guidance.host.gradient.image_gradient import ScoreGradient
from jepa_guidance.host.gradient.ways import Way
from jepa_guidance.host.guidance.config import GuidanceConfig
from jepa_guidance.host.guidance.patch import apply_guidance
from jepa_guidance.host.guidance.schedule import Schedule
from torch import Tensor

from jepa_core import RarityGradient, Reference, jepa_score
from jepa_core.novelty import embed
from jepa_core.reference import NO_SCORE, ReferencePart
from jepa_core.views import views
from research.harness.pack_api import OwnGradient

CONFIG = {entry.name for entry in fields(GuidanceConfig)}


def guide_model(
    model: Any,
    vae: Any,
    encoder: Any,
    schedule: Schedule,
    rarity: RarityGradient,
    *,
    gradient: Callable[..., ScoreGradient] | None = None,
    **settings: Any,
) -> Any:
    """Return the guided MODEL.

    Args:
        gradient: in place of the chain: (denoise, x, sigma, base model) -> ScoreGradient.
        settings: of GuidanceConfig and of apply_guidance.
    """
    config = GuidanceConfig(
        schedule, rarity, **{name: settings.pop(name) for name in CONFIG & settings.keys()}
    )
    own = (
        OwnGradient(gradient, Way(config.through_denoiser, checkpointing=config.checkpointing))
        if gradient
        else None
    )
    return apply_guidance(model, vae, encoder, config, chain=own, **settings)


def reference_of(
    encoders: Sequence[Any], images: Tensor, *, top_k: int | None = None, fit: str = "squash"
) -> Reference:
    """What these encoders make of images (N, H, W, 3); with scores of the top singular values if top_k is given."""
    parts = []
    for one in encoders:
        encoder = one.encoder
        seen = [encoder.preprocess(view, fit=fit) for view in views(images)]
        embeddings = torch.stack([embed(encoder, x) for x in seen])
        scores = None if top_k is None else jepa_score(encoder, seen[0], top_k=top_k)
        own = (one.name, encoder.fingerprint, one.image_size)
        parts.append(ReferencePart(*own, embeddings[0], embeddings.mean(0), scores))
    mode = NO_SCORE if top_k is None else f"top {top_k}"
    return Reference(tuple(parts), {"mode": mode, "fit": fit, "antialias": "on"})
