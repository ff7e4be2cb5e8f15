"""Videos: latents of several frames, decoded completely and seen as clips by an encoder of motion."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import comfy.model_patcher
import pytest
import torch
from jepa_guidance.host.encoders.host_encoder import HostEncoder, combined
from jepa_guidance.host.gradient.chain import LatentGradient
from jepa_guidance.host.gradient.decoders import LatentDecoder, decoded, shrink
from jepa_guidance.host.gradient.image_gradient import Guide, ImageGradient
from jepa_guidance.host.guidance.schedule import Schedule
from jepa_guidance.host.options import ENCODER_RESOLUTION, FULL, NOVELTY
from jepa_guidance.nodes.guided_ksampler import JEPAGuidedKSampler

from jepa_core import RarityGradient, Reference, load_encoder
from jepa_core.novelty import embed
from jepa_core.reference import NO_SCORE, ReferencePart
from tests.core.conftest import random_model
from tests.host.families import CPU
from tests.host.guidance.test_families import (
    check_inside,
    encoder_of,
    exact_family,
    family_of,
    guided,
    sample,
)

FRAMES = 9  # which the host's video autoencoder encodes to three latent frames


@pytest.fixture(scope="module")
def motion(tmp_path_factory) -> dict[torch.dtype, HostEncoder]:
    """A small V-JEPA 2 in each precision, with 16 x 16 pixel input."""
    folder: Path = tmp_path_factory.mktemp("vjepa2")
    random_model("vjepa2", hidden_size=24, num_hidden_layers=1).save_pretrained(folder)
    found = {}
    for dtype in (torch.float32, torch.float64):
        encoder = load_encoder(folder, dtype=dtype, image_size=16)
        found[dtype] = HostEncoder("motion", comfy.model_patcher.ModelPatcher(encoder, CPU, CPU), 16)
    return found


def test_a_video_is_decoded_to_its_frames_and_shrunk_frame_by_frame():
    family = family_of("wan_video")
    latent = torch.randn(1, 16, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(False), torch.no_grad():
        frames = decoded(family.vae, latent)
        assert frames.shape == (FRAMES, 32, 48, 3)
        expected = family.vae.decode(latent)
    torch.testing.assert_close(frames, expected.reshape(frames.shape), rtol=0, atol=1e-5)
    for fit in ("squash", "crop"):
        small = shrink(latent, 2, fit)
        assert small.shape == (1, 16, 3, 2, 2)
        for index in range(3):
            assert torch.equal(small[:, :, index], shrink(latent[:, :, index], 2, fit))


@pytest.mark.parametrize(("through", "cfg"), [(False, 4.0), (True, 1.0)])
def test_the_gradient_inside_a_run_is_the_finite_difference(motion, through, cfg):
    (gradient, *_) = check_inside(exact_family("wan_video"), motion[torch.float64], through, cfg)
    assert gradient.shape == (1, 16, 3, 4, 6)
    # the gradient reaches every latent frame
    assert gradient.abs().amax((0, 1, 3, 4)).min() > 0


def test_the_frames_are_seen_together_as_a_clip(motion):
    """Reordering frames changes nothing for single images, but it changes a clip."""
    encoder = motion[torch.float64].encoder
    vae = exact_family("wan_video").vae
    latent = torch.randn(1, 16, 3, 4, 6, generator=torch.Generator().manual_seed(0)).double()
    rarity = RarityGradient(k=3, oversample=12, power_iterations=6)
    clip = LatentGradient(LatentDecoder(vae), ImageGradient([Guide(encoder)], rarity)).of_latent(latent)
    with torch.inference_mode(False), torch.no_grad():
        frames = decoded(vae, latent)
    seen = encoder.of_clips(FRAMES)
    expected = rarity(seen, seen.preprocess(frames[None])).score
    assert clip.score.item() == pytest.approx(expected.item(), rel=1e-9)
    backwards = rarity(seen, seen.preprocess(frames.flip(0)[None])).score
    assert backwards.item() != pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize("decoder", [FULL, ENCODER_RESOLUTION])
def test_a_run_is_guided_and_without_strength_it_is_the_stock_one(motion, decoder):
    family, encoder = family_of("wan_video"), motion[torch.float32]
    plain = sample(family)
    reports: list[Any] = []
    settings = {"decoder": decoder, "judge": encoder}
    patched = guided(family, encoder, report=reports.append, **settings)
    found = sample(family, patched)
    assert found.isfinite().all()
    assert (found - plain).abs().amax((0, 1, 3, 4)).min() > 1e-3
    assert torch.equal(sample(family, guided(family, encoder, **settings)), found)
    off = guided(family, encoder, Schedule(strength=0.0), **settings)
    assert torch.equal(sample(family, off), plain)
    steps = reports[-1].guided_steps
    assert steps
    assert all(len(step.score) == len(step.judged[encoder.label]) == 1 for step in steps)


def test_novelty_compares_clips_with_clips(motion):
    """And a video alone in its batch has nothing to be apart from."""
    family, encoder = family_of("wan_video"), motion[torch.float32]
    plain = sample(family)
    assert torch.equal(sample(family, guided(family, encoder, criterion=NOVELTY, apart=True)), plain)
    clips = encoder.encoder.of_clips(FRAMES)
    usual = torch.rand(7, FRAMES, 32, 48, 3, generator=torch.Generator().manual_seed(0))
    embeddings = embed(clips, clips.preprocess(usual))
    own = (encoder.name, encoder.encoder.fingerprint, encoder.image_size)
    how = {"mode": NO_SCORE, "fit": "squash", "antialias": "on"}
    reference = Reference((ReferencePart(*own, embeddings, embeddings),), how)
    reports: list[Any] = []
    settings = {"criterion": NOVELTY, "reference": reference, "target": 0.2, "smooth": True}
    patched = guided(
        family, encoder, Schedule(strength=-0.5, end_percent=1.0), report=reports.append, **settings
    )
    found = sample(family, patched)
    assert found.isfinite().all()
    assert (found - plain).abs().amax((0, 1, 3, 4)).min() > 1e-3
    steps = reports[-1].guided_steps
    assert steps[-1].novelty < steps[0].novelty
    assert [list(place) for place in reports[-1].places] == [[NOVELTY]]


@pytest.mark.parametrize("who", ["guide", "one of two guides", "judge"])
def test_an_image_encoder_is_refused_by_name_before_the_first_step(motion, who):
    family, still = family_of("wan_video"), encoder_of()
    encoder: Any = motion[torch.float32]
    settings: dict[str, Any] = {}
    if who == "judge":
        settings["judge"] = still
    else:
        encoder = still if who == "guide" else combined([(encoder, 1.0), (still, 1.0)])
    patched = guided(family, encoder, **settings)
    message = "a video of 3 latent frames, and tiny sees still images"
    with pytest.raises(ValueError, match=re.escape(message)):
        sample(family, patched)
    # and by the node, before anything is loaded
    ids = {
        entry.id: entry.default
        for entry in JEPAGuidedKSampler.define_schema().inputs
        if hasattr(entry, "default")
    }
    inputs = ids | {
        "model": family.model,
        "vae": family.vae,
        "encoder": encoder,
        "latent_image": family.latent,
    }
    inputs |= {"positive": family.positive, "negative": family.negative, "seed": 1, **settings}
    with pytest.raises(ValueError, match=re.escape(message)):
        JEPAGuidedKSampler.execute(**inputs)
