"""What presets, settings and a reference change, from the node's inputs to the guided image."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from jepa_guidance.host.guidance.patch import apply_guidance
from jepa_guidance.host.options import BOTH, NOVELTY, SCORE
from jepa_guidance.nodes.guidance_inputs import config_of, guidance_inputs, values_of
from jepa_guidance.nodes.guidance_presets import BALANCED, CUSTOM, FAITHFUL, PRESETS, SUBTLE, TIMES, WILD
from jepa_guidance.nodes.guidance_settings import ChosenSettings, JEPAGuidanceSettings, settings_inputs
from jepa_guidance.nodes.guidance_settings import defaults as settings_defaults

FACE = {entry.id: entry for entry in guidance_inputs()}
# what custom alone leaves to the settings
WAY = {
    *("gradient_path", "decoder", "denoiser_calls", "checkpointing"),
    *("range_finder", "rank", "oversampling", "power_iterations"),
}


def linked(**changes):
    """What JEPAGuidanceSettings gives with these inputs, all others at their defaults."""
    return JEPAGuidanceSettings.execute(**settings_defaults() | changes).result[0]


def inputs(tiny, **changes):
    defaults = {
        name: entry.default for name, entry in FACE.items() if getattr(entry, "default", None) is not None
    }
    return defaults | {"vae": tiny.vae, "encoder": tiny.encoder} | changes


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


def test_the_face_is_slim_and_its_defaults_are_those_of_balanced(tiny):
    widgets = [name for name, entry in FACE.items() if getattr(entry, "default", None) is not None]
    assert widgets == ["strength", "preset", "start_percent", "end_percent", "target", "apart"]
    assert FACE["preset"].default == BALANCED
    assert how(config_of(inputs(tiny))) == [True, "full", "one", False, 9, 2, 2, True, True, 0.35]
    assert all(entry.tooltip for entry in [*FACE.values(), *settings_inputs()])


def test_auto_is_novelty_where_there_is_something_to_compare_with(tiny):
    reference = SimpleNamespace(how={"mode": "exact", "fit": "squash", "antialias": "on"})
    for changes, expected in (
        ({}, SCORE),
        ({"reference": reference}, NOVELTY),
        ({"apart": True}, NOVELTY),
        ({"settings": linked(criterion=SCORE), "reference": reference}, SCORE),
        ({"settings": linked(criterion=BOTH)}, BOTH),
    ):
        assert config_of(inputs(tiny, **changes)).criterion == expected


@pytest.mark.parametrize("preset", [SUBTLE, BALANCED, WILD, FAITHFUL, CUSTOM])
@pytest.mark.parametrize("chosen", ["auto", "crop"])
def test_every_preset_sees_images_as_a_references_pictures_were_seen(tiny, preset, chosen):
    reference = SimpleNamespace(how={"mode": "exact", "fit": "crop", "antialias": "on"})
    config = config_of(inputs(tiny, preset=preset, settings=linked(fit=chosen), reference=reference))
    assert config.fit == "crop"


def test_custom_is_the_linked_settings_and_without_any_their_defaults(tiny):
    expected = [True, "full", "two", False, 9, 2, 2, True, False, 0.3]
    assert how(config_of(inputs(tiny, preset=CUSTOM))) == expected
    assert how(config_of(inputs(tiny, preset=CUSTOM, settings=linked()))) == expected
    other = linked(rank=3, decoder="encoder resolution", interval=2)
    config = config_of(inputs(tiny, preset=CUSTOM, settings=other))
    assert how(config) == [True, "encoder resolution", "two", False, 3, 2, 2, True, False, 0.3]
    assert config.schedule.interval == 2


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        (SUBTLE, [False, "encoder resolution", "one", False, 9, 2, 2, True, True, 0.35]),
        (BALANCED, [True, "full", "one", False, 9, 2, 2, True, True, 0.35]),
        (WILD, [True, "full", "one", False, 9, 2, 2, True, True, 0.35]),
    ],
)
def test_a_preset_overrides_how_the_gradient_is_computed_and_no_other_setting(tiny, preset, expected):
    mine = linked(
        fit="crop", antialias=False, interval=3, smooth=True, oversampling=7, range_finder="cold", rank=4
    )
    config = config_of(inputs(tiny, preset=preset, settings=mine, strength=-1.5))
    assert how(config) == expected
    assert (config.fit, config.antialias, config.smooth) == ("crop", False, True)
    assert (config.schedule.strength, config.schedule.interval) == (-1.5, 3)
    assert set(PRESETS[preset]) == WAY


def test_faithful_is_the_papers_program_whatever_the_settings_say(tiny):
    changes = {entry.id: entry.options[-1] for entry in settings_inputs() if getattr(entry, "options", None)}
    mine = linked(
        **changes | {"criterion": "auto"}, interval=3, smooth=True, keep_appearance=True, agree=True
    )
    config = config_of(inputs(tiny, preset=FAITHFUL, settings=mine))
    assert how(config) == [True, "full", "two", True, 9, 2, 2, False, False, 0.3]
    schedule = config.schedule
    assert (schedule.interval, schedule.variance, schedule.normalisation) == (1, False, "max")
    assert [schedule.step_strength(count) for count in (1, 12)] == [0.5, 0.5]
    assert (config.criterion, config.fit, config.antialias) == (SCORE, "squash", False)
    assert [config.smooth, config.keep_appearance, config.agree] == [False] * 3
    assert set(PRESETS[FAITHFUL]) == set(settings_defaults()) - {"criterion"}


def test_wild_counts_the_strength_double_and_no_other_preset_does(tiny):
    for preset in (*PRESETS, CUSTOM):
        schedule = config_of(inputs(tiny, preset=preset, strength=0.75)).schedule
        assert schedule.strength == 0.75
        assert schedule.step_strength(3) == (1.5 if preset == WILD else 0.75)
    assert set(TIMES) == {WILD}


def test_a_reference_brings_how_pictures_are_seen_unless_settings_say_otherwise(tiny):
    reference = SimpleNamespace(how={"mode": "exact", "fit": "crop", "antialias": "off"})
    for preset in (*PRESETS, CUSTOM):
        for settings in (None, linked(), linked(antialias=True)):
            values = values_of(inputs(tiny, preset=preset, reference=reference, settings=settings))
            assert (values["fit"], values["antialias"]) == ("crop", False)
    values = values_of(inputs(tiny, preset=CUSTOM, reference=reference, settings=linked(fit="squash")))
    assert (values["fit"], values["antialias"]) == ("squash", True)
    # without a reference there is nothing to bring
    for settings, seen in (
        (linked(), ("squash", True)),
        (linked(fit="crop", antialias=False), ("crop", False)),
    ):
        values = values_of(inputs(tiny, preset=CUSTOM, settings=settings))
        assert (values["fit"], values["antialias"]) == seen


def test_settings_are_refused_where_they_are_set():
    with pytest.raises(ValueError, match=r"^rank 0 is outside 1 to 256"):
        linked(rank=0)
    assert linked() == ChosenSettings(settings_defaults())


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_guides_and_says_how(monkeypatch, tiny, stock, preset, fast):
    for module in ("jepa_core.jacobian", "jepa_core.precision", "jepa_guidance.host.guidance.patch"):
        monkeypatch.setattr(f"{module}.has_fast_bfloat16", lambda device: fast)
    mine = inputs(tiny, preset=preset, end_percent=1.0)
    reports = []
    latent = {"samples": torch.zeros(1, 4, 20, 20)}
    with torch.inference_mode():
        patched = apply_guidance(tiny.model, tiny.vae, tiny.encoder, config_of(mine), report=reports.append)
    guided = stock(patched, tiny, steps=3, latent_image=latent)
    assert not torch.equal(guided, stock(tiny.model, tiny, steps=3, latent_image=latent))
    through = "through denoiser, full decoder, one call, tracked in half precision"
    said = {
        SUBTLE: "denoiser constant, decoder at encoder resolution, one call, tracked in half precision",
        BALANCED: through,
        WILD: f"{through}, strength counts 2 times",
        FAITHFUL: "through denoiser, full decoder, two calls, cold, checkpointing",
    }
    if not fast:  # half precision is computed in float32, and the message says so
        said = {name: line.replace(" in half precision", "") for name, line in said.items()}
    assert said[preset] in reports[-1].message().splitlines()
