"""JEPARankImages on a small random encoder, compared with sorting by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from jepa_guidance.host.drawing.pictures import labelled_sheet
from jepa_guidance.host.encoders.host_encoder import combined
from jepa_guidance.host.scoring.scores import score_images
from jepa_guidance.nodes.rank_images import JEPARankImages, seeds_of


@pytest.fixture
def images() -> torch.Tensor:
    """Five very different images."""
    generator = torch.Generator().manual_seed(0)
    smooth = torch.rand(5, 2, 2, 3, generator=generator).movedim(-1, 1)
    return torch.nn.functional.interpolate(smooth, size=(28, 28), mode="bilinear").movedim(1, -1)


def rank(images: list, encoder: Any, **changes: Any) -> tuple:
    """The node's outputs. Inputs are lists, as the host passes them."""
    values = {"keep": "rarest", "count": 3, "mode": "exact"} | changes
    given = values.pop("seeds", None)
    lists = {name: [value] for name, value in values.items()}
    with torch.inference_mode():
        return JEPARankImages.execute(images=images, encoder=[encoder], seeds=given, **lists).args


@pytest.mark.parametrize("keep", ["rarest", "most typical"])
def test_the_order_is_that_of_the_scores(tiny, images, keep):
    (expected,) = score_images(images, tiny.encoder)
    order = np.argsort(expected)[:: 1 if keep == "rarest" else -1][:3].tolist()
    (kept,), scores, indices, seeds, sheet = rank([images], tiny.encoder, keep=keep)
    assert indices == order
    assert scores == [expected[index] for index in order]
    assert torch.equal(kept, images[order])
    assert seeds == []
    assert sheet.shape[0] == 1


def test_a_transparent_picture_is_scored_as_it_looks_on_white(tiny, images):
    alpha = torch.linspace(0, 1, 28)[:, None].expand(5, 28, 28)[..., None]
    transparent = torch.cat([images, alpha], -1)
    assert score_images(transparent, tiny.encoder) == score_images(images * alpha + (1 - alpha), tiny.encoder)
    assert score_images(transparent, tiny.encoder) != score_images(images, tiny.encoder)
    opaque = torch.cat([images, torch.ones_like(alpha)], -1)
    assert score_images(opaque, tiny.encoder) == score_images(images, tiny.encoder)


def test_a_list_of_batches_is_ranked_together(tiny, images):
    (_, scores, indices, seeds, _) = rank(
        [images[:2], images[2:]], tiny.encoder, count=9, seeds=[7, 8, 9, 10, 2**64 - 1]
    )
    (expected,) = score_images(images, tiny.encoder)
    assert scores == sorted(expected)
    assert sorted(indices) == [0, 1, 2, 3, 4]
    assert seeds == [[7, 8, 9, 10, 2**64 - 1][index] for index in indices]


def test_images_of_several_sizes_come_out_one_by_one(tiny, images):
    larger = torch.nn.functional.interpolate(images.movedim(-1, 1), size=(42, 56)).movedim(1, -1)
    kept, scores, indices, seeds, _ = rank([images, larger], tiny.encoder, count=10, seeds=[3])
    assert len(kept) == 10
    assert {tuple(image.shape) for image in kept} == {(1, 28, 28, 3), (1, 42, 56, 3)}
    assert seeds == [3] * 10
    everything = [*images.split(1), *larger.split(1)]
    assert all(torch.equal(image, everything[index]) for image, index in zip(kept, indices, strict=True))
    assert scores == sorted(scores)


def test_several_encoders_rank_by_their_mean_score(tiny, images):
    other = replace(tiny.encoder, image_size=42)  # the same weights, with another image size
    first, second = (score_images(images, one)[0] for one in (tiny.encoder, other))
    assert first != second
    expected = sorted(0.75 * a + 0.25 * b for a, b in zip(first, second, strict=True))
    both = combined([(tiny.encoder, 3.0), (other, 1.0)])
    assert rank([images], both, count=5)[1] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 0}, "count 0 is outside 1 to 4096"),
        ({"keep": "best"}, "keep must be one of rarest, most typical"),
        ({"mode": "top-k"}, "mode must be one of projected, exact"),
        ({"seeds": [1, 2]}, "seeds holds 2 seeds for 5 images"),
        ({"seeds": [1.5]}, "seeds must be whole numbers"),
    ],
)
def test_values_that_do_not_fit_are_refused(tiny, images, changes, message):
    with pytest.raises(ValueError, match=message):
        rank([images], tiny.encoder, **changes)


def test_no_images_and_several_encoders_in_a_list_are_refused(tiny, images):
    with pytest.raises(ValueError, match="images holds no image"):
        rank([images[:0]], tiny.encoder)
    lists = {"keep": ["rarest"], "count": [1], "mode": ["exact"]}
    with pytest.raises(ValueError, match="encoder must be one value, got a list of 2"):
        JEPARankImages.execute(images=[images], encoder=[tiny.encoder] * 2, **lists)
    with pytest.raises(ValueError, match="images must be of type IMAGE"):
        rank(["text"], tiny.encoder)


def test_one_seed_counts_for_all_images():
    assert seeds_of([5], 3) == [5, 5, 5]
    assert seeds_of(None, 3) == []


def test_the_sheet_shows_every_picture_completely():
    red, wide = torch.zeros(8, 8, 3), torch.zeros(4, 16, 4)
    red[..., 0], wide[..., 2], wide[..., 3] = 1, 1, 0.5
    sheet = labelled_sheet([red, wide], ["1. image 0\n-3.20", "2. image 1\n-1.00\nseed 4"])[0]
    assert sheet.shape == (16 + 256 + 3 * 28 + 16, 2 * (256 + 16) + 16, 3)
    pixels = (sheet * 255).round().int().numpy()
    assert (pixels == (255, 0, 0)).all(-1).sum() == 256 * 256
    # half transparent blue over white
    assert (pixels == (128, 128, 255)).all(-1).sum() == 256 * 64
    assert (pixels[290:] < 100).any()  # labels
