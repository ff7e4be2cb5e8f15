"""Guides of every architecture, sets of guides, judges, and shared weights."""

from __future__ import annotations

import gc
import os
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from jepa_guidance.host.encoders.host_encoder import HostEncoder, combined, load_host_encoder, patchers
from jepa_guidance.host.gradient.chain import LatentGradient
from jepa_guidance.host.gradient.decoders import LatentDecoder, decoded
from jepa_guidance.host.gradient.image_gradient import Guide, ImageGradient
from jepa_guidance.host.guidance.schedule import Schedule
from jepa_guidance.host.scoring.scores import score_images
from jepa_guidance.jepa_core.score import PROJECTION
from jepa_guidance.nodes.combine_encoders import JEPACombineEncoders
from jepa_guidance.nodes.score_image import JEPAScoreImage
from torch import Tensor

from jepa_core import RarityGradient, jepa_score, load_encoder
from jepa_core.architectures import ARCHITECTURES
from tests.core.conftest import SMALL, random_model
from tests.host.guide import guide_model

RARITY = {"k": 3, "oversample": 4, "power_iterations": 4}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """The files of a small encoder of every kind."""
    found = {}
    for kind in ARCHITECTURES:
        folder = tmp_path_factory.mktemp(kind)
        random_model(kind, hidden_size=24).save_pretrained(folder)
        found[kind] = folder / "model.safetensors"
    return found


def host_encoder(files: dict[str, Path], kind: str, patches: int = 2) -> HostEncoder:
    return load_host_encoder(files[kind], kind, patches * int(SMALL[kind]["patch_size"]))  # type: ignore[call-overload]


@pytest.fixture
def clip(files) -> HostEncoder:
    return host_encoder(files, "clip_vision_model")


@pytest.fixture
def jepa(files) -> HostEncoder:
    return host_encoder(files, "ijepa", patches=3)


def guided(tiny: Any, stock: Any, encoder: Any, reports: list[Any] | None = None, **settings: Any) -> Tensor:
    """The guided latents of a short run, through the real host."""
    strength = settings.pop("strength", 0.5)
    with torch.inference_mode():
        patched = guide_model(
            tiny.model,
            tiny.vae,
            encoder,
            Schedule(strength=strength, end_percent=1.0),
            RarityGradient(**RARITY),
            report=(reports if reports is not None else []).append,
            **settings,
        )
    return stock(patched, tiny, steps=4)


# --- every architecture as a guide --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_architecture_guides_a_run(tiny, stock, files, kind):
    encoder = host_encoder(files, kind)
    plain = stock(tiny.model, tiny, steps=4)
    reports: list[Any] = []
    found = guided(tiny, stock, encoder, reports)
    assert found.isfinite().all()
    assert (found - plain).abs().max() > 1e-2
    assert torch.equal(guided(tiny, stock, encoder), found)
    assert torch.equal(guided(tiny, stock, encoder, strength=0.0), plain)
    first, *_, last = reports[-1].guided_steps
    assert all(map(lambda before, after: after < before, first.score, last.score))


# --- sets ---------------------------------------------------------------------------------------------------------


def test_weights_add_up_to_one_and_sets_within_sets_are_flat(clip, jepa, files):
    dino = host_encoder(files, "dinov2")
    pair = combined([(clip, 3.0), (jepa, 1.0)])
    assert [(member.encoder, member.weight) for member in pair.members] == [(clip, 0.75), (jepa, 0.25)]
    assert pair.name == "clip_vision_model + ijepa"
    whole = combined([(pair, 2.0), (dino, 1.0), (clip, 1.0)])
    weights = {member.encoder.name: member.weight for member in whole.members}
    assert weights == pytest.approx({"clip_vision_model": 0.625, "ijepa": 0.125, "dinov2": 0.25})
    assert sum(weights.values()) == pytest.approx(1)
    assert len(patchers(whole, pair, clip)) == 3
    assert clip.members[0].weight == 1
    assert jepa.label == "ijepa at 24 px"


def test_an_encoder_combined_with_itself_is_itself(tiny, stock, clip):
    expected = guided(tiny, stock, clip)
    assert torch.equal(guided(tiny, stock, combined([(clip, 1.0), (clip, 2.0)])), expected)


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.9, 0.1)])
def test_the_gradient_of_a_set_is_the_finite_difference(tiny, files, weights):
    """Of the sum of the guides' scores, each divided by the size of its gradient with respect to the decoded image."""
    vae = tiny.make_vae(torch.float64)
    kinds = zip(("clip_vision_model", "ijepa"), (16, 24), weights, strict=True)
    guides = [
        Guide(load_encoder(files[kind], dtype=torch.float64, image_size=size), weight)
        for kind, size, weight in kinds
    ]
    rarity = RarityGradient(k=3, oversample=12, power_iterations=8, tracked=False)
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def image_of(z: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():
            return decoded(vae, z)

    def scores_at(z: Tensor) -> list[float]:
        image = image_of(z)
        return [rarity(guide.encoder, guide.encoder.preprocess(image)).score.item() for guide in guides]

    sizes = []
    for encoder, *_ in guides:
        pixels = image_of(latent).requires_grad_()
        x = encoder.preprocess(pixels)
        (part,) = torch.autograd.grad(x, pixels, rarity(encoder, x.detach()).grad)
        sizes.append(part.square().mean().sqrt().item())
    result = LatentGradient(LatentDecoder(vae), ImageGradient(guides, rarity)).of_latent(latent)
    at = scores_at(latent)
    assert result.each[:, 0].tolist() == pytest.approx(at)
    assert result.score.item() == pytest.approx(sum(w * s for w, s in zip(weights, at, strict=True)))
    for seed in (2, 3):
        direction = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed)).double()
        step = 1e-5
        ahead, behind = scores_at(latent + step * direction), scores_at(latent - step * direction)
        expected = sum(
            weight / size * (after - before) / (2 * step)
            for weight, size, after, before in zip(weights, sizes, ahead, behind, strict=True)
        )
        found = (result.gradient * direction).sum().item()
        assert found == pytest.approx(expected, rel=1e-3)


def test_the_trace_has_the_scores_of_each_guide(tiny, stock, clip, jepa):
    """At the first guided step each score is that of a run with this guide alone; tracked bases are not mixed up."""
    reports: list[Any] = []
    guided(tiny, stock, combined([(clip, 1.0), (jepa, 3.0)]), reports)
    trace = reports[-1]
    steps = trace.guided_steps
    assert list(steps[0].scores) == [clip.label, jepa.label]
    for encoder in (clip, jepa):
        alone: list[Any] = []
        guided(tiny, stock, encoder, alone)
        first = next(step for step in alone[-1].guided_steps)
        assert steps[0].scores[encoder.label] == pytest.approx(first.score, rel=1e-6)
        assert encoder.label not in alone[-1].message()
    for step in steps:
        mean = [0.25 * a + 0.75 * b for a, b in zip(*step.scores.values(), strict=True)]
        assert step.score == pytest.approx(mean)
    assert f"{clip.label}: {sum(steps[0].scores[clip.label]) / 2:.2f} to" in trace.message()
    assert "mean score" in trace.message()
    assert "2 guides" in trace.message()


@pytest.mark.parametrize("through", [False, True])
def test_a_set_lowers_the_scores_of_all_its_guides(tiny, stock, clip, jepa, through):
    """With one guide alone, nothing lowers the other's score."""
    reports: list[Any] = []
    found = guided(tiny, stock, combined([(clip, 1.0), (jepa, 1.0)]), reports, through_denoiser=through)
    alone = [guided(tiny, stock, encoder, through_denoiser=through) for encoder in (clip, jepa)]
    assert all(not torch.equal(found, other) for other in alone)
    first, *_, last = reports[-1].guided_steps
    for label in (clip.label, jepa.label):
        assert sum(last.scores[label]) < sum(first.scores[label])


def test_a_rank_larger_than_the_embedding_of_one_guide_is_refused(tiny, clip, jepa):
    """CLIP's projection has length 24 here."""
    with pytest.raises(ValueError, match="rank 25 is larger than the embedding of clip_vision_model, 24"):
        guide_model(
            tiny.model, tiny.vae, combined([(clip, 1.0), (jepa, 1.0)]), Schedule(), RarityGradient(k=25)
        )


def test_a_guide_with_a_gradient_of_zero_is_left_out(tiny, clip, jepa):
    """A gradient of zero has no direction and must not become NaN."""
    vae = tiny.vae
    blind = Guide(clip.encoder, 0.5)
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))

    class Blind(RarityGradient):
        def __call__(self, encoder: Any, x: Tensor, ids: Any = None) -> Any:
            found = super().__call__(encoder, x, ids)
            if encoder is blind.encoder:
                found.grad.zero_()
            return found

    both = LatentGradient(
        LatentDecoder(vae), ImageGradient([blind, Guide(jepa.encoder, 0.5)], Blind(**RARITY))
    ).of_latent(latent)
    alone = LatentGradient(
        LatentDecoder(vae), ImageGradient([Guide(jepa.encoder)], RarityGradient(**RARITY))
    ).of_latent(latent)
    assert both.gradient.isfinite().all()
    cosine = torch.cosine_similarity(both.gradient.flatten(), alone.gradient.flatten(), dim=0)
    assert cosine > 1 - 1e-6


# --- judges -------------------------------------------------------------------------------------------------------


def test_a_judge_changes_nothing_and_scores_the_decoded_estimate(tiny, stock, clip, jepa):
    expected = guided(tiny, stock, clip)
    images: list[Tensor] = []

    class Kept(RarityGradient):
        """Keeps the images that the guide saw."""

        def __call__(self, encoder: Any, x: Tensor, ids: Any = None) -> Any:
            images.append(x)
            return super().__call__(encoder, x, ids)

    reports: list[Any] = []
    with torch.inference_mode():
        patched = guide_model(
            tiny.model,
            tiny.vae,
            clip,
            Schedule(end_percent=1.0),
            Kept(**RARITY),
            # the guide is a judge too, since the images that it saw are known
            judge=combined([(clip, 1.0), (jepa, 1.0)]),
            report=reports.append,
        )
    found = stock(patched, tiny, steps=4)
    assert torch.equal(found, expected)
    steps = reports[-1].guided_steps
    assert all(list(step.judged) == [clip.label, jepa.label] for step in steps)
    own = [score for step in steps for score in step.judged[clip.label]]
    assert len(images) == len(own)
    wanted = [jepa_score(clip.encoder, x, projection=min(PROJECTION, 24)).item() for x in images]
    assert own == pytest.approx(wanted, rel=1e-6)
    assert f"judged by {jepa.label}: " in reports[-1].message()
    assert "mean score" not in reports[-1].message()


def test_a_judge_of_an_image_that_is_not_finite(tiny, stock, monkeypatch, clip, jepa):
    """The judge's score is NaN, and the run continues as without a judge."""
    decode = "jepa_guidance.host.gradient.chain.decoded"
    monkeypatch.setattr(decode, lambda vae, latent: decoded(vae, latent) * torch.nan)
    reports: list[Any] = []
    found = guided(tiny, stock, clip, reports, judge=jepa)
    assert torch.equal(found, stock(tiny.model, tiny, steps=4))
    judged = [score for step in reports[-1].guided_steps for score in step.judged[jepa.label]]
    assert judged
    assert all(score != score for score in judged)


def test_the_host_loads_guides_and_judges_with_the_model(tiny, clip, jepa):
    patched = guide_model(tiny.model, tiny.vae, clip, Schedule(), RarityGradient(k=3), judge=jepa)
    (added,) = [patched.get_additional_models_with_key(key) for key in patched.additional_models]
    assert [patcher.model for patcher in added[1:]] == [clip.patcher.model, jepa.patcher.model]


# --- scores -------------------------------------------------------------------------------------------------------


def test_a_batch_is_scored_under_each_encoder_of_a_set(clip, jepa):
    images = torch.rand(3, 20, 20, 3, generator=torch.Generator().manual_seed(0))
    both = combined([(clip, 1.0), (jepa, 3.0)])
    done: list[int] = []
    with torch.inference_mode():
        each = score_images(images, both, on_image=lambda: done.append(1))
        assert each == [*score_images(images, clip), *score_images(images, jepa)]
        scores, text, of_each, *beside = JEPAScoreImage.execute(images, both, "exact", 9, "squash", True).args
        single = JEPAScoreImage.execute(images, clip, "exact", 9, "squash", True).args
    assert len(done) == 6
    assert beside == [[], [], []]
    mean = [0.25 * a + 0.75 * b for a, b in zip(*each, strict=True)]
    assert scores == pytest.approx(mean)
    assert of_each == each[0] + each[1]
    rarest = min(range(3), key=lambda index: mean[index])
    assert (
        f"1. image {rarest}: score {mean[rarest]:.2f} ({each[0][rarest]:.2f}, {each[1][rarest]:.2f})" in text
    )
    assert "clip_vision_model + ijepa" in text
    assert single[0] == single[2] == each[0]
    assert "(" not in single[1].split("\n")[1]


@pytest.mark.parametrize(("mode", "what"), [("top-k", "top_k 25"), ("projected", "projection 48")])
def test_a_score_that_one_encoder_of_a_set_does_not_have_is_refused_at_once(clip, jepa, mode, what):
    images = torch.rand(1, 20, 20, 3)
    with pytest.raises(ValueError, match=f"{what} is larger than the embedding of clip_vision_model, 24"):
        JEPAScoreImage.execute(images, combined([(clip, 1.0), (jepa, 1.0)]), mode, 25, "squash", True)


# --- the node -----------------------------------------------------------------------------------------------------


def test_the_node_combines_the_linked_encoders(clip, jepa, files):
    dino = host_encoder(files, "dinov3_vit")
    (pair,) = JEPACombineEncoders.execute(encoder_1=clip, weight_1=1.0, encoder_2=jepa, weight_2=3.0).args
    assert pair == combined([(clip, 1.0), (jepa, 3.0)])
    given = {"encoder_1": pair, "weight_1": 1.0, "encoder_2": jepa, "weight_2": 1.0}
    (three,) = JEPACombineEncoders.execute(**given, encoder_4=dino, weight_4=2.0, weight_3=5.0).args
    assert three == combined([(pair, 1.0), (jepa, 1.0), (dino, 2.0)])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("encoder_2", "clip", "encoder_2 must be of type JEPA_ENCODER, got str"),
        ("encoder_1", None, "encoder_1 must be of type JEPA_ENCODER, got NoneType"),
        ("weight_1", 0.0, "weight_1 0.0 is outside 0.05 to 100"),
        ("weight_2", -1.0, "weight_2 -1.0 is outside"),
        ("weight_1", float("nan"), "weight_1 nan is outside"),
        ("weight_2", "much", "weight_2 must be a number, got 'much'"),
    ],
)
def test_the_node_refuses_what_it_cannot_combine(clip, jepa, name, value, message):
    given = {"encoder_1": clip, "weight_1": 1.0, "encoder_2": jepa, "weight_2": 1.0}
    with pytest.raises(ValueError, match=message):
        JEPACombineEncoders.execute(**given | {name: value})


# --- shared weights -----------------------------------------------------------------------------------------------


def test_loaders_of_one_file_share_its_weights_at_any_size(files, tmp_path):
    shutil.copytree(files["ijepa"].parent, tmp_path / "ijepa")
    file = tmp_path / "ijepa" / "model.safetensors"
    small, large = load_host_encoder(file, "a", 16), load_host_encoder(file.parent, "b", 32)
    assert small.patcher is large.patcher
    assert (small.encoder.image_size, large.encoder.image_size) == (16, 32)
    pointers = {weight.data_ptr() for weight in small.encoder.parameters()}
    assert {weight.data_ptr() for weight in large.encoder.parameters()} == pointers
    with pytest.raises(ValueError, match="image_size must be a multiple of the patch size 8, got 20"):
        load_host_encoder(file, "c", 20)
    # a changed file with the same name is another encoder
    os.utime(file, ns=(1, 1))
    assert load_host_encoder(file, "a", 16).patcher is not small.patcher


def test_unused_weights_are_freed(files, tmp_path):
    shutil.copytree(files["siglip_vision_model"].parent, tmp_path / "siglip")
    encoder = load_host_encoder(tmp_path / "siglip" / "model.safetensors", "a", 16)
    gone = weakref.ref(encoder.patcher.model)
    del encoder
    gc.collect()
    assert gone() is None


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"none\.safetensors does not exist"):
        load_host_encoder(tmp_path / "none.safetensors", "a", 16)
