"""What presets change and what they leave alone, from the node's inputs to the guided image."""

from __future__ import annotations

import pytest
import torch
from jepa_guidance.host.guidance.patch import apply_guidance
from jepa_guidance.host.options import BOTH, NOVELTY, SCORE, TINY_OR_SMALL
from jepa_guidance.nodes.guidance_inputs import (
    AUTO,
    CUSTOM,
    LATER_INPUTS,
    PRESETS,
    config_of,
    guidance_inputs,
)

# Inputs that no preset sets: strength, range, what the encoder sees, and what rare means.
STRENGTH_AND_TIME = {
    *("strength", "start_percent", "end_percent", "interval", "schedule", "normalisation", "strength_rule"),
    *("fit", "antialias", "vae", "encoder", "preset", "judge"),
    *("criterion", "reference", "target", "apart", "smooth", "keep_appearance", "agree"),
}


def settings(tiny, **changes):
    defaults = {entry.id: entry.default for entry in guidance_inputs() if hasattr(entry, "default")}
    own = {"vae": tiny.vae, "encoder": tiny.encoder, "rank": 3, "preset": CUSTOM}
    return defaults | own | changes


def how(config):
    rarity = config.rarity
    calls = "one" if config.one_call else "two"
    return [
        *(config.through_denoiser, config.decoder, calls, config.checkpointing),
        rarity.k,
        rarity.oversample,
        rarity.power_iterations,
        rarity.tracked,
        rarity.half,
        rarity.tolerance,
    ]


def test_a_new_node_has_the_preset_auto_and_a_saved_graph_keeps_its_own(tiny):
    (preset,) = (entry for entry in guidance_inputs() if entry.id == "preset")
    assert preset.default == AUTO
    old = {name: value for name, value in settings(tiny).items() if name != "preset"}
    assert how(config_of(old)) == how(config_of(settings(tiny, preset=CUSTOM)))
    assert how(config_of(old)) != how(config_of(settings(tiny, preset=AUTO)))


def test_auto_is_novelty_where_there_is_something_to_compare_with(tiny):
    (criterion,) = (entry for entry in guidance_inputs() if entry.id == "criterion")
    assert criterion.default == AUTO
    for changes, expected in (
        ({}, SCORE),
        ({"reference": object()}, NOVELTY),
        ({"apart": True}, NOVELTY),
        ({"criterion": SCORE, "reference": object()}, SCORE),
        ({"criterion": BOTH}, BOTH),
    ):
        assert config_of(settings(tiny, **changes)).criterion == expected
    old = {name: value for name, value in settings(tiny, reference=object()).items() if name != "criterion"}
    assert config_of(old).criterion == SCORE


def test_the_preset_custom_leaves_the_inputs_as_they_are(tiny):
    assert how(config_of(settings(tiny, rank=9))) == [True, "full", "two", False, 9, 2, 2, True, False, 0.3]
    # a prompt saved before these inputs existed
    old = {name: value for name, value in settings(tiny).items() if name not in LATER_INPUTS}
    assert how(config_of(old)) == how(config_of(settings(tiny)))


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        (AUTO, [True, "full", "one", False, 9, 2, 2, True, True, 0.35]),
        ("faithful", [True, "full", "two", True, 9, 2, 2, False, False, 0.3]),
        ("balanced", [False, "encoder resolution", "one", False, 9, 2, 2, True, True, 0.35]),
        ("fast", [False, TINY_OR_SMALL, "one", False, 9, 1, 1, True, True, 0.35]),
    ],
)
def test_a_preset_only_overrides_how_the_gradient_is_computed(tiny, preset, expected):
    typed = {"oversampling": 7, "power_iterations": 5, "range_finder": "cold", "checkpointing": True}
    mine = settings(tiny, preset=preset, fit="crop", antialias=False, strength=-1.5, interval=3, **typed)
    config = config_of(mine)
    assert how(config) == expected
    assert (config.fit, config.antialias) == ("crop", False)
    assert (config.schedule.strength, config.schedule.interval) == (-1.5, 3)


def test_presets_set_the_same_inputs_and_all_others_are_the_users():
    ids = {entry.id for entry in guidance_inputs()}
    for preset in PRESETS.values():
        assert set(preset) == ids - STRENGTH_AND_TIME


def test_later_inputs_come_last_and_are_optional():
    entries = guidance_inputs()
    assert [entry.id for entry in entries if entry.optional] == list(LATER_INPUTS)
    assert [entry.id for entry in entries][-len(LATER_INPUTS) :] == list(LATER_INPUTS)
    assert all(entry.tooltip for entry in entries)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_guides_and_says_how(monkeypatch, tiny, stock, preset, fast):
    for module in ("jepa_core.jacobian", "jepa_core.precision", "jepa_guidance.host.guidance.patch"):
        monkeypatch.setattr(f"{module}.has_fast_bfloat16", lambda device: fast)
    mine = settings(tiny, preset=preset, end_percent=1.0)
    reports = []
    latent = {"samples": torch.zeros(1, 4, 20, 20)}
    with torch.inference_mode():
        patched = apply_guidance(tiny.model, tiny.vae, tiny.encoder, config_of(mine), report=reports.append)
    guided = stock(patched, tiny, steps=3, latent_image=latent)
    assert not torch.equal(guided, stock(tiny.model, tiny, steps=3, latent_image=latent))
    said = {
        AUTO: "through denoiser, full decoder, one call, tracked in half precision",
        "faithful": "through denoiser, full decoder, two calls, cold, checkpointing",
        "balanced": "denoiser constant, decoder at encoder resolution, one call, tracked in half precision",
        # the test host has no tiny decoder
        "fast": "denoiser constant, decoder at encoder resolution (no taesd_decoder.safetensors in "
        "models/vae_approx), one call, tracked in half precision",
    }
    if not fast:  # half precision is computed in float32, and the message says so
        said = {name: line.removesuffix(" in half precision") for name, line in said.items()}
    assert said[preset] in reports[-1].message().splitlines()
