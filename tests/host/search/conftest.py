"""Search with the host's own sampler node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from jepa_guidance.host.comfy.sampling import stock_sample
from jepa_guidance.host.scoring.along import kept_rows
from jepa_guidance.host.search.batch import batch_of
from jepa_guidance.host.search.config import SearchConfig
from jepa_guidance.host.search.search import apply_search

SAMPLING = {
    "seed": 5,
    "steps": 10,
    "cfg": 3.0,
    "sampler_name": "euler",
    "scheduler": "normal",
    "denoise": 1.0,
}
CANDIDATES, COUNT = 6, 2
LATENT = {"samples": torch.zeros(1, 4, 8, 8)}


@pytest.fixture
def search(tiny: Any) -> Callable[..., tuple[dict, Any]]:
    """Search among a tiny model's images -> the kept rows as a LATENT, the record."""

    def run(
        model: Any = None, *, latent: dict = LATENT, sampling: dict | None = None, **settings: Any
    ) -> tuple:
        others = {
            name: settings.pop(name) for name in ("reference", "prompt_fit", "report") if name in settings
        }
        config = SearchConfig(**{"candidates": CANDIDATES, "count": COUNT} | settings)
        with torch.inference_mode():
            patched, record = apply_search(model or tiny.model, tiny.vae, tiny.encoder, config, **others)
            conditions = {"positive": tiny.positive, "negative": tiny.negative}
            drawn = stock_sample(
                patched, batch_of(latent, config.candidates), **SAMPLING | conditions | (sampling or {})
            )
            return kept_rows(drawn, [one.index for one in record.kept]), record

    return run
