"""Guides a MODEL with the settings of a test, or with a gradient that the test defines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from jepa_guidance.host.gradient.image_gradient import ScoreGradient
from jepa_guidance.host.guidance.config import GuidanceConfig
from jepa_guidance.host.guidance.patch import apply_guidance
from jepa_guidance.host.guidance.schedule import Schedule

from jepa_core import RarityGradient
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
    own = OwnGradient(gradient, config.through_denoiser, config.checkpointing) if gradient else None
    return apply_guidance(model, vae, encoder, config, chain=own, **settings)
