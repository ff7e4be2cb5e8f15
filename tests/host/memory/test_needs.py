"""What is planned for a guided step is what it holds, counted on the tensors of a real run of every family."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from jepa_guidance.host.comfy.vae import frames_of
from jepa_guidance.host.gradient.chain import LatentGradient
from jepa_guidance.host.gradient.decoders import decoded
from jepa_guidance.host.gradient.ways import THROUGH, ways_down
from jepa_guidance.host.guidance import guided_run
from jepa_guidance.host.memory.count import LiveStorages

from tests.host.guidance.test_families import SUPPORTED, encoder_of, family_of, guided, sample

# On a processor the attention of their VAEs writes a matrix, which no card does.
WRITE_ATTENTION = {"pixart", "mage_flow"}
# They look at numbers, so their memory is reckoned.
RECKONED = {"hidream", "hidream_o1", "hunyuan_image", "ltx_still"}
# Of the encoder's gradient and small results, which are nothing beside networks of a usual size.
SMALL = 300_000
WAYS = ways_down(THROUGH, small_decoder=True, batch=1)


@pytest.fixture
def run_counted(monkeypatch):
    """Runs a family, guided through its denoiser: bytes held in each guided step, and the run's needs by way."""

    def run(name: str, sampling: dict | None = None, **settings: Any) -> tuple[list[int], Any]:
        peaks, plans = [], []
        family = family_of(name)
        modules = (family.model.model, family.vae.first_stage_model, encoder_of().encoder)
        weights = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        stock, plan = LatentGradient.__call__, guided_run.PlannedMemory

        def counted(chain: LatentGradient, *args: Any) -> Any:
            with LiveStorages(weights) as storages:
                found = stock(chain, *args)
            peaks.append(storages.peak)
            return found

        def remembered(*args: Any) -> Any:
            plans.append(plan(*args))
            for way in WAYS:  # counted in the run, as the run counts them
                plans[-1].needs(way)
            return plans[-1]

        with monkeypatch.context() as patch:
            patch.setattr(guided_run, "PlannedMemory", remembered)
            patch.setattr(LatentGradient, "__call__", counted)
            sample(
                family,
                guided(family, encoder_of(), through_denoiser=True, one_call=True, **settings),
                **{"steps": 4} | (sampling or {}),
            )
        return peaks, plans[0].needs

    return run


# Some kinds of networks and VAEs; the others take long.
KINDS = {
    "sd15",
    "sdxl",
    "cascade",
    "sd3",
    "flux",
    "wan_still",
    "chroma_radiance",
}


@pytest.mark.parametrize(
    "name", [name if name in KINDS else pytest.param(name, marks=pytest.mark.long) for name in SUPPORTED]
)
def test_every_family_holds_what_was_planned(name, run_counted, caplog):
    with caplog.at_level(logging.INFO):
        peaks, needs = run_counted(name)
    planned, held = needs(THROUGH), peaks[-1]
    assert (name in RECKONED) == ("not counted but reckoned" in caplog.text)
    if name not in WRITE_ATTENTION | RECKONED:
        assert 0.85 * held - SMALL < planned < 1.15 * held + SMALL


def test_a_run_without_a_negative_prompt_is_another_plan(run_counted):
    """Half of the denoiser's work: counted once for each, whichever came first."""
    found = [run_counted("sd15", {"cfg": cfg}) for cfg in (1.0, 7.0, 1.0)]
    for peaks, needs in found:
        assert 0.85 * peaks[-1] - SMALL < needs(THROUGH) < 1.15 * peaks[-1] + SMALL
    alone, both, again = (needs(THROUGH) for _, needs in found)
    assert alone == again < both


@pytest.mark.parametrize("name", ["sdxl", "flux", "hunyuan_dit"])
def test_checkpointing_is_planned_too(name, run_counted):
    peaks, needs = run_counted(name, checkpointing=True)
    planned = needs(replace(THROUGH, checkpointing=True))
    assert 0.85 * peaks[-1] - SMALL < planned < 1.15 * peaks[-1] + SMALL
    assert planned < needs(THROUGH)


def test_every_way_down_takes_no_more_than_the_one_before_of_its_kind(run_counted):
    _, needs = run_counted("sdxl")
    for way in WAYS:
        own = [needs(other) for other in WAYS if other.same_effect(way)]
        assert own[-1] == min(own)
    assert needs(WAYS[-1]) == min(map(needs, WAYS))


def test_a_video_is_planned_with_the_frames_that_it_is_decoded_to():
    vae = family_of("wan_video").vae
    for length in (1, 3):
        latent = torch.zeros(1, 16, length, 4, 4)
        with torch.inference_mode(False), torch.no_grad():
            assert frames_of(vae, latent) == len(decoded(vae, latent))
    image = family_of("sd15").vae
    assert frames_of(image, torch.zeros(1, 4, 4, 4)) == 1
