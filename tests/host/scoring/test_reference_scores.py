"""JEPAReferenceScores and the percentiles of JEPAScoreImage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from jepa_guidance.host.scoring.reference import Reference, percentile
from jepa_guidance.host.scoring.scores import score_images
from jepa_guidance.nodes.reference_scores import JEPAReferenceScores
from jepa_guidance.nodes.score_image import JEPAScoreImage

SETTINGS = {"mode": "exact", "top_k": 2, "fit": "squash", "antialias": True}


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(6, 28, 28, 3, generator=torch.Generator().manual_seed(0))


def reference_of(batches: list, encoder: Any, **changes: Any) -> tuple:
    lists = {name: [value] for name, value in (SETTINGS | changes).items()}
    with torch.inference_mode():
        return JEPAReferenceScores.execute(images=batches, encoder=[encoder], **lists).args


def score(images: torch.Tensor, encoder: Any, **changes: Any) -> tuple:
    with torch.inference_mode():
        return JEPAScoreImage.execute(images, encoder, **(SETTINGS | changes)).args


def test_percentiles_count_the_rarer_images(tiny, images):
    reference, sorted_scores = reference_of([images[:3], images[3:5]], tiny.encoder)
    (own,) = score_images(images, tiny.encoder)
    assert sorted_scores == sorted(own[:5])
    scores, text, _, percentiles = score(images, tiny.encoder, reference=reference)
    below = [(np.array(own[:5]) < value).sum() for value in own]
    same = [(np.array(own[:5]) == value).sum() for value in own]
    expected = [100 * (b + s / 2) / 5 for b, s in zip(below, same, strict=True)]
    assert percentiles == pytest.approx(expected)
    assert scores == own
    assert "of 5 reference images" in text


def test_without_a_reference_there_is_no_percentile(tiny, images):
    *_, text, _, percentiles = score(images[:1], tiny.encoder)
    assert percentiles == []
    assert "reference" not in text


def test_the_percentile_by_hand():
    reference = Reference([-3.0, -2.0, -2.0, 5.0], {})
    assert [percentile(value, reference) for value in (-4.0, -3.0, -2.0, 0.0, 6.0)] == [0, 12.5, 50, 75, 100]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "top-k"}, "mode exact, this node has top 2"),
        ({"fit": "crop"}, "fit squash, this node has crop"),
        ({"antialias": False}, "antialias on, this node has off"),
    ],
)
def test_scores_of_other_settings_are_not_compared(tiny, images, changes, message):
    reference, _ = reference_of([images[:2]], tiny.encoder)
    with pytest.raises(ValueError, match=message):
        score(images[:1], tiny.encoder, reference=reference, **changes)


def test_no_image_and_several_settings_are_refused(tiny, images):
    with pytest.raises(ValueError, match="holds no image"):
        reference_of([images[:0]], tiny.encoder)
    lists = {name: [value] for name, value in SETTINGS.items()} | {"mode": ["exact"] * 2}
    with pytest.raises(ValueError, match="mode must be one value, got a list of 2"):
        JEPAReferenceScores.execute(images=[images], encoder=[tiny.encoder], **lists)
