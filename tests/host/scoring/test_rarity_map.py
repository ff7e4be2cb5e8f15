"""JEPARarityMap on a small random encoder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from jepa_guidance.host.encoders.host_encoder import combined, use_encoder
from jepa_guidance.host.scoring.rarity_map import novelty_fields, score_fields
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
    overlay, mask, *_ = run(images, tiny.encoder)
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
    overlay, mask, *_ = run(images, tiny.encoder, fit="crop", opacity=1.0)
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
    overlay, *_ = run(shown, tiny.encoder, opacity=0.0)
    grey = (images * torch.tensor(LUMA)).sum(-1, keepdim=True).expand(-1, -1, -1, 3)
    torch.testing.assert_close(overlay[:, :28], grey)


def test_the_overlay_is_the_clean_one_above_the_legend(tiny, images):
    overlay, mask, clean, legend = run(images, tiny.encoder)
    assert clean.shape == images.shape
    assert mask.shape == images.shape[:3]
    assert torch.equal(overlay, torch.cat([clean, legend], 1))


def test_the_later_inputs_leave_the_map_of_saved_graphs_as_it_was(tiny, images):
    overlay, mask, *_ = run(images, tiny.encoder)
    for later in ({"one_scale": False}, {"threshold": 20.0}, {"palette": "heat", "blur": 0.0}):
        for before, now in zip((overlay, mask), run(images, tiny.encoder, **later), strict=False):
            assert torch.equal(before, now)


def test_one_scale_goes_from_the_rarest_to_the_most_typical_patch_of_the_batch(tiny, images):
    fields = score_fields(images, tiny.encoder)
    _, mask, _, legend = run(images, tiny.encoder, one_scale=True)
    torch.testing.assert_close(mask, (fields.max() - fields) / (fields.max() - fields.min()))
    assert torch.equal(legend[0], legend[1])


def test_plain_areas_are_neither_coloured_nor_masked(tiny, images):
    large = torch.nn.functional.interpolate(images.movedim(-1, 1), scale_factor=8).movedim(1, -1)
    large[:, :, 112:] = 0.5
    _, mask, clean, _ = run(large, tiny.encoder, ignore_flat=0.1, opacity=1.0)
    assert mask[:, :, 140:].eq(0).all()
    assert mask[:, :, :84].amax((1, 2)).eq(1).all()
    torch.testing.assert_close(clean[:, :, 140:], large[:, :, 140:])
    # neither does the scale reach to them
    bare = run(large, tiny.encoder, threshold_kind="none")[1]
    assert not torch.equal(mask[:, :, :84], bare[:, :, :84])
    inverted = run(large, tiny.encoder, ignore_flat=0.1, invert=True)[1]
    torch.testing.assert_close(inverted, 1 - mask)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold_kind": "best"}, "threshold_kind must be one of none, value, percentile"),
        ({"threshold": 101.0}, "threshold 101.0 is outside 0.0 to 100.0"),
        ({"grow": 257}, "grow 257 is outside -256 to 256"),
        ({"grow": 0.5}, "grow must be a whole number"),
        ({"blur": float("nan")}, "blur nan is outside 0.0 to 256.0"),
        ({"ignore_flat": -1.0}, "ignore_flat -1.0 is outside 0.0 to 0.5"),
        ({"palette": "rainbow"}, "palette must be one of heat, sea, blue to yellow, grey"),
        ({"invert": "yes"}, "invert must be true or false"),
        ({"one_scale": None}, "one_scale must be true or false"),
    ],
)
def test_values_that_do_not_fit_are_refused_before_work(tiny, images, monkeypatch, changes, message):
    monkeypatch.setattr("jepa_guidance.nodes.rarity_map.score_fields", None)
    with pytest.raises(ValueError, match=message):
        run(images, tiny.encoder, **changes)


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
    _, mask, *_ = run(images, tiny.encoder, reference=reference)
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


# --- the mask in the host's inpainting --------------------------------------------------------------------------------


def test_the_host_redraws_only_the_usual_part(tiny, images, stock):
    import nodes as host_nodes

    seen = torch.nn.functional.interpolate(images[:, :, :28].movedim(-1, 1), (16, 16)).movedim(1, -1)
    settings = {"threshold_kind": "percentile", "threshold": 50.0, "invert": True}
    mask = run(seen, tiny.encoder, **settings)[1]
    latent = {"samples": torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))}
    (masked,) = host_nodes.SetLatentNoiseMask().set_mask(latent, mask)
    redrawn = stock(tiny.model, tiny, latent_image=masked, denoise=0.8)
    # the host takes the mask of a latent's cell from the pixels that it covers
    cells = torch.nn.functional.interpolate(mask[:, None], (8, 8), mode="bilinear").expand(-1, 4, -1, -1)
    assert (cells == 0).any()
    torch.testing.assert_close(redrawn[cells == 0], latent["samples"][cells == 0])
    assert (redrawn - latent["samples"])[cells == 1].abs().mean() > 0.1


def test_the_host_encodes_an_image_for_inpainting_with_the_mask(tiny, images):
    import nodes as host_nodes

    with torch.inference_mode():
        mask = run(images, tiny.encoder, threshold_kind="value", threshold=50.0)[1]
        (latent,) = host_nodes.VAEEncodeForInpaint().encode(tiny.vae, images, mask, grow_mask_by=0)
    assert len(latent["samples"]) == 2
    assert torch.equal(latent["noise_mask"].reshape(2, 28, 42), mask)
