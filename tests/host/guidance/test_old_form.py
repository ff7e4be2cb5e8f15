"""Prompts of the time when the guiding nodes had their technical inputs on them run as they did."""

from __future__ import annotations

import copy

import pytest
from jepa_guidance.host.options import COLD, FULL, NOVELTY, SCORE, TINY_OR_SMALL, TRACKED, TRACKED_HALF
from jepa_guidance.nodes.guidance_inputs import config_of, guidance_inputs
from jepa_guidance.nodes.guidance_settings import JEPAGuidanceSettings, settings_inputs
from jepa_guidance.nodes.input_checks import check_values
from jepa_guidance.nodes.old_form import GUIDING, OLD_FORM, read_old_prompt

FIRST = {
    **{
        "strength": 1.5,
        "start_percent": 0.1,
        "end_percent": 0.9,
        "interval": 2,
        "rank": 5,
        "oversampling": 3,
    },
    **{
        "power_iterations": 1,
        "schedule": "variance",
        "normalisation": "rms",
        "gradient_path": "through denoiser",
    },
    **{"strength_rule": "per_step", "fit": "crop", "antialias": False},
}
LATER = {
    **{"decoder": "encoder resolution", "denoiser_calls": "one", "checkpointing": True, "range_finder": COLD},
    **{
        "criterion": NOVELTY,
        "target": "none",
        "apart": True,
        "smooth": True,
        "keep_appearance": True,
        "agree": True,
    },
}
# how each preset of then computed the gradient: path, decoder, calls, checkpointing, k, p, q, range finder
THEN = {
    "auto": [True, FULL, "one", False, 9, 2, 2, TRACKED_HALF],
    "faithful": [True, FULL, "two", True, 9, 2, 2, COLD],
    "balanced": [False, "encoder resolution", "one", False, 9, 2, 2, TRACKED_HALF],
    "fast": [False, TINY_OR_SMALL, "one", False, 9, 1, 1, TRACKED_HALF],
    "custom": [True, "encoder resolution", "one", True, 5, 3, 1, COLD],
}
FINDERS = {(True, False): TRACKED, (True, True): TRACKED_HALF, (False, False): COLD}


def read(kind, inputs):
    """The config of a node of a prompt, as it runs today."""
    prompt = {"7": {"class_type": kind, "inputs": copy.deepcopy(inputs)}}
    read_old_prompt({"prompt": prompt})
    (source, _) = prompt["7"]["inputs"].pop("settings")
    assert prompt[source]["class_type"] == "JEPAGuidanceSettings"
    face, settings = prompt["7"]["inputs"], prompt[source]["inputs"]
    assert set(settings) == {entry.id for entry in settings_inputs()}
    check_values(guidance_inputs(), face)
    return config_of({**face, "settings": JEPAGuidanceSettings.execute(**settings).result[0]})


def how(config):
    rarity = config.rarity
    calls = "one" if config.one_call else "two"
    finder = FINDERS[rarity.tracked, rarity.half]
    size = [rarity.k, rarity.oversample, rarity.power_iterations]
    return [config.through_denoiser, config.decoder, calls, config.checkpointing, *size, finder]


@pytest.mark.parametrize("kind", GUIDING)
@pytest.mark.parametrize("preset", THEN)
def test_every_value_of_an_old_prompt_counts_as_it_did(kind, preset):
    config = read(kind, FIRST | LATER | {"preset": preset})
    assert how(config) == THEN[preset]
    schedule = config.schedule
    assert (schedule.strength, schedule.start_percent, schedule.end_percent) == (1.5, 0.1, 0.9)
    assert (schedule.interval, schedule.normalisation, schedule.variance) == (2, "rms", True)
    assert schedule.step_strength(6) == 1.5
    assert (config.criterion, config.apart, config.target) == (NOVELTY, True, None)
    assert (config.smooth, config.keep_appearance, config.agree) == (True, True, True)
    assert (config.fit, config.antialias) == ("crop", False)


def test_a_prompt_saved_before_the_later_inputs_is_custom_and_guides_by_the_score():
    config = read("JEPAGuidedKSampler", FIRST)
    assert how(config) == [True, FULL, "two", False, 5, 3, 1, TRACKED]
    assert (config.criterion, config.apart, config.smooth) == (SCORE, False, False)


def test_a_link_moves_with_its_input_and_ids_stay_unique():
    many = {str(number): {"class_type": "PrimitiveInt", "inputs": {}} for number in range(1, 6)}
    old = {"class_type": "JEPAGuidance", "inputs": FIRST | {"rank": ["3", 0], "preset": ["4", 0]}}
    prompt = {**many, "6": old, "9": copy.deepcopy(old)}
    read_old_prompt({"prompt": prompt})
    added = [prompt[name]["inputs"].pop("settings")[0] for name in ("6", "9")]
    assert len({*added, *many, "6", "9"}) == len(prompt) == 9
    assert all(prompt[name]["inputs"]["rank"] == ["3", 0] for name in added)
    assert prompt["6"]["inputs"]["preset"] == ["4", 0]


@pytest.mark.parametrize(
    "prompt",
    [
        None,
        [],
        {"1": None, "2": {"class_type": "JEPAGuidance"}, "3": {"class_type": ["x"], "inputs": {"rank": 1}}},
        {"1": {"class_type": "JEPAGuidance", "inputs": {"strength": 1.0, "preset": "balanced"}}},
        {"1": {"class_type": "KSampler", "inputs": {"rank": 1}}},
    ],
)
def test_everything_else_is_left_alone(prompt):
    assert read_old_prompt({"prompt": copy.deepcopy(prompt)}) == {"prompt": prompt}
    assert read_old_prompt({}) == {}


def test_the_table_names_inputs_of_today():
    today = {entry.id for entry in [*guidance_inputs(), *settings_inputs()]}
    assert set(OLD_FORM["order"]) <= today
    assert set(OLD_FORM["defaults"]) <= set(OLD_FORM["order"])
    assert set(OLD_FORM["set"]) == set(OLD_FORM["presets"]["faithful"][1])
