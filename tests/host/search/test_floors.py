"""Floors in a search: rare, and still what was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_management
import numpy as np
import pytest
import torch
from jepa_guidance.host.scoring.prompt_fit import load_prompt_scorer, prompt_fits
from jepa_guidance.host.search import search as appraised

from tests.core.conftest import save_clip
from tests.host.search.conftest import CANDIDATES, SAMPLING
from tests.host.search.test_search import batch


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def scorer(saved: Path) -> Any:
    """A small random CLIP and a text."""
    return load_prompt_scorer(saved, "clip", "a red fox, sitting")


def fits_of(tiny: Any, latents: torch.Tensor, scorer: Any) -> list[float]:
    """How well finished latents fit, decoded by the host."""
    with torch.inference_mode():
        return prompt_fits(torch.cat([tiny.vae.decode(row[None]) for row in latents]), scorer)


@pytest.mark.parametrize("looks", [(), (0.4, 0.7)], ids=["at the end", "at looks"])
def test_no_kept_image_is_below_a_floor_at_the_median(tiny, search, scorer, looks):
    how = {"floor_kind": "percentile", "floor": 50.0, "count": 4, "looks": looks}
    kept, record = search(prompt_fit=scorer, **how)
    found = fits_of(tiny, kept["samples"], scorer)
    torch.testing.assert_close(
        torch.tensor(found), torch.tensor([one.quality for one in record.kept]), rtol=0, atol=1e-3
    )
    assert record.floor is not None
    assert all(one.quality >= record.floor for one in record.kept)
    assert any("below the floor" in one.dropped for one in record.candidates)


def test_without_looks_the_floor_is_the_percentile_of_all_finished_images(tiny, stock, search, scorer):
    _, record = search(prompt_fit=scorer, floor_kind="percentile", floor=50.0, count=6, looks=())
    fits = fits_of(tiny, stock(tiny.model, tiny, latent_image=batch(), **SAMPLING), scorer)
    assert record.floor == pytest.approx(np.median(fits), abs=1e-3)
    assert len(record.kept) == CANDIDATES // 2
    assert any("only 3 of 6 can be kept" in notice for notice in record.notices)


def test_a_value_that_nobody_reaches_names_the_best_fit(search, scorer):
    with pytest.raises(ValueError, match=r"no image reaches the floor 0\.99; the best quality is"):
        search(prompt_fit=scorer, floor_kind="value", floor=0.99)


def test_without_a_floor_the_fit_is_only_told(search, scorer):
    kept, record = search(prompt_fit=scorer)
    plain, _ = search()
    assert torch.equal(kept["samples"], plain["samples"])
    assert record.has_qualities
    assert record.floor is None


def test_the_clip_is_loaded_with_the_run_and_not_during_it(tiny, search, scorer, monkeypatch):
    loads = []
    load = comfy.model_management.load_models_gpu
    monkeypatch.setattr(
        comfy.model_management,
        "load_models_gpu",
        lambda models, *a, **k: loads.append(models) or load(models, *a, **k),
    )
    search(prompt_fit=scorer)
    # the host's own call, before the first step
    assert len([models for models in loads if any(one.is_clone(scorer.patcher) for one in models)]) == 1


def test_a_percentile_that_all_fall_short_of_later_is_lowered_to_the_best(tiny, search, scorer, monkeypatch):
    """Estimates may measure higher than the finished images: here by a whole unit at the first look."""
    seen = []
    measure = appraised.prompt_fits_here

    def higher_at_first(images: torch.Tensor, one: Any) -> list[float]:
        seen.append(len(images))
        return [fit + (len(seen) == 1) for fit in measure(images, one)]

    monkeypatch.setattr(appraised, "prompt_fits_here", higher_at_first)
    kept, record = search(prompt_fit=scorer, floor_kind="percentile", floor=50.0)
    assert len(kept["samples"]) == 1
    assert record.kept[0].quality >= record.floor == pytest.approx(record.kept[0].quality, abs=1e-2)
    assert any("lowered to the best" in notice for notice in record.notices)
