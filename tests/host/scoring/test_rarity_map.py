"""JEPARarityMap on a small random encoder, and its colours."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from jepa_guidance.host.drawing.rarity_overlay import HEAT, draw_overlay
from jepa_guidance.host.encoders.host_encoder import combined, use_encoder
from jepa_guidance.host.scoring.rarity_map import novelty_fields, rarity_mask, score_fields
from jepa_guidance.host.scoring.reference import make_reference
from jepa_guidance.jepa_core.score import PROJECTION
from jepa_guidance.nodes.rarity_map import JEPARarityMap

from jepa_core import differentiable, patch_scores
from jepa_core.appearance import LUMA


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 28, 42, 3, generator=torch.Generator().manual_seed(0))


def run(images: torch.Tensor, encoder: Any, **changes: Any) -> tuple:
    values = {"opacity": 0.5, "fit": "squash", "antialias": True} | changes
    with torch.inference_mode():
        return JEPARarityMap.execute(images, encoder, **values).args


def scores_of(encoder: Any, images: torch.Tensor, fit: str) -> torch.Tensor:
    inner = use_encoder(encoder)
    x = inner.preprocess(images, fit=fit)
    return patch_scores(inner, x, projection=min(PROJECTION, inner.embed_dim))


def test_the_mask_is_largest_where_the_patch_score_is_lowest(tiny, images):
    overlay, mask = run(images, tiny.encoder)
    scores = scores_of(tiny.encoder, images, "squash")
    side = scores.shape[-1]
    assert mask.shape == (2, 28, 42)
    assert mask.amin() == 0
    assert mask.amax() == 1
    assert overlay.shape[2] == 42
    # with an odd patch size, the centre pixel of a patch has the patch's own score
    blocks = torch.nn.functional.adaptive_avg_pool2d(mask[:, None], side)[:, 0]
    for own, block in zip(scores, blocks, strict=True):
        assert torch.corrcoef(torch.stack([own.flatten().float(), block.flatten()]))[0, 1] < -0.9
        assert own.argmin() == block.argmax()


def test_a_crop_leaves_the_sides_unseen(tiny, images):
    fields = score_fields(images, tiny.encoder, fit="crop")
    assert fields[:, :, :7].isnan().all()
    assert fields[:, :, 35:].isnan().all()
    assert fields[:, :, 7:35].isfinite().all()
    overlay, mask = run(images, tiny.encoder, fit="crop", opacity=1.0)
    assert mask[:, :, :7].eq(0).all()
    # parts that were not seen stay grey, whatever the opacity
    grey = (images[0, :, :7] * torch.tensor(LUMA)).sum(-1)
    torch.testing.assert_close(overlay[0, :28, :7], grey[..., None].expand(-1, -1, 3))
    centre = score_fields(images[:, :, 7:35], tiny.encoder)
    torch.testing.assert_close(fields[:, :, 7:35], centre)


def test_several_encoders_are_averaged_by_their_weights(tiny, images):
    other = replace(tiny.encoder, image_size=42)
    first, second = (score_fields(images, one) for one in (tiny.encoder, other))
    both = score_fields(images, combined([(tiny.encoder, 3.0), (other, 1.0)]))
    torch.testing.assert_close(both, 0.75 * first + 0.25 * second)


@pytest.mark.parametrize("channels", [3, 4])
def test_without_opacity_the_picture_is_the_grey_image(tiny, images, channels):
    shown = torch.cat([images, torch.ones_like(images)], -1)[..., :channels]
    overlay, _ = run(shown, tiny.encoder, opacity=0.0)
    grey = (images * torch.tensor(LUMA)).sum(-1, keepdim=True).expand(-1, -1, -1, 3)
    torch.testing.assert_close(overlay[:, :28], grey)


def test_colours_brighten_with_rarity_and_the_scale_says_which_is_which():
    luma = (HEAT * torch.tensor(LUMA)).sum(-1)
    assert luma.diff().min() > 0.06
    field = torch.linspace(-10, 10, 512).expand(100, -1)
    picture = draw_overlay(torch.zeros(100, 512, 3), field, 1.0)
    torch.testing.assert_close(picture[0, 0, 0], HEAT[-1])
    torch.testing.assert_close(picture[0, 0, -1], HEAT[0])
    scale = picture[0, 100:]
    torch.testing.assert_close(scale[0, 0], HEAT[0], rtol=0, atol=1 / 254)
    torch.testing.assert_close(scale[0, -1], HEAT[-1], rtol=0, atol=1 / 254)
    assert (scale[30:] < 0.2).all(-1).sum() > 300  # letters


def test_an_image_of_equal_scores_has_an_empty_mask():
    assert rarity_mask(torch.full((3, 3), -5.0)).eq(0).all()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda images: images[0], "images must be"),
        (lambda images: images.index_fill(0, torch.tensor([1]), torch.nan), "image 1 of the batch holds NaN"),
    ],
)
def test_bad_images_are_refused(tiny, images, spoil, message):
    with pytest.raises(ValueError, match=message):
        run(spoil(images), tiny.encoder)


# --- against a reference ------------------------------------------------------------------------------------------


def reference_of(encoder: Any, **how: str) -> Any:
    pictures = torch.rand(7, 28, 28, 3, generator=torch.Generator().manual_seed(5))
    how = {"mode": "no scores", "fit": "squash", "antialias": "on"} | how
    return make_reference(list(pictures), encoder, how)


def distance_at(encoder: Any, reference: Any, x: torch.Tensor) -> torch.Tensor:
    """The mean distance to the five nearest, written out."""
    points = reference.parts[0].embeddings.double()
    distances = (encoder(x)[:, None].double() - points).norm(dim=-1)
    return distances.sort(1).values[:, :5].mean(1)


def test_with_a_reference_the_map_is_the_gradient_of_the_distance(tiny, images):
    reference = reference_of(tiny.encoder)
    _, mask = run(images, tiny.encoder, reference=reference)
    fields = novelty_fields(images, tiny.encoder, reference)
    assert mask.shape == (2, 28, 42)
    inner = tiny.encoder.encoder
    with differentiable(inner):
        x = inner.preprocess(images).requires_grad_()
        (grad,) = torch.autograd.grad(distance_at(inner, reference, x).sum(), x)
    for own, field in zip(grad, fields, strict=True):
        norms = torch.stack(
            [own[:, i : i + 14, j : j + 14].norm() for i in range(0, 28, 14) for j in range(0, 28, 14)]
        )
        expected = torch.nn.functional.interpolate(norms.reshape(1, 1, 2, 2), (28, 42), mode="bilinear")[0, 0]
        torch.testing.assert_close(-field, expected, rtol=1e-4, atol=1e-6)


def test_a_set_of_encoders_has_the_weighted_mean_of_the_shapes_of_its_maps(tiny, images):
    other = replace(tiny.encoder, image_size=42, name="larger")
    both = combined([(tiny.encoder, 3.0), (other, 1.0)])
    reference = reference_of(both)
    first, second = (novelty_fields(images, one, reference) for one in (tiny.encoder, other))
    found = novelty_fields(images, both, reference)
    assert found.shape == first.shape == second.shape
    assert torch.corrcoef(torch.stack([found.flatten(), first.flatten()]))[0, 1] > 0.5
    assert not torch.equal(found, first)


def test_a_reference_of_another_fit_is_refused_before_work(tiny, images, monkeypatch):
    monkeypatch.setattr("jepa_guidance.nodes.rarity_map.novelty_fields", None)
    with pytest.raises(ValueError, match=r"fit crop, this node has squash"):
        run(images, tiny.encoder, reference=reference_of(tiny.encoder, fit="crop"))
