"""The paths' images are resumable, and their figures are those of the same seeds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from research.costs.step import preset_inputs
from research.effects import evaluate, paths
from research.effects.evaluate import read_rows
from research.effects.paths import (
    ALL_ARMS,
    ARMS,
    FAITHFUL,
    UNGUIDED,
    guided_model,
    main,
    share,
    summarise,
    table,
)


def test_figures_are_of_the_seeds_that_have_all_arms() -> None:
    arms = (UNGUIDED, FAITHFUL, "fast")
    scores = {
        **{(0, UNGUIDED): -10.0, (0, FAITHFUL): -14.0, (0, "fast"): -12.0},
        **{(1, UNGUIDED): -20.0, (1, FAITHFUL): -26.0, (1, "fast"): -23.0},
        **{(2, UNGUIDED): -99.0, (2, FAITHFUL): -1.0},
    }
    times = {UNGUIDED: 1.0, FAITHFUL: 11.0, "fast": 3.0}
    seconds = {(seed, arm): times[arm] + seed for seed in range(3) for arm in arms}
    found = summarise(seconds, scores, arms)
    assert found[UNGUIDED] == {"seconds": 1.5}
    assert found[FAITHFUL]["change"] == {"n": 2, "mean": -5.0, "standard_error": 1.0}
    assert found[FAITHFUL]["share"] == {"mean": 1.0, "standard_error": 0.0}
    assert found["fast"]["change"]["mean"] == -2.5
    assert found["fast"]["share"] == {"mean": 0.5, "standard_error": 0.0}
    assert found["fast"]["extra_seconds"] == 2
    assert found["fast"]["change_per_extra_second"] == -1.25
    assert FAITHFUL in table(found)
    assert summarise(seconds, {}, arms) == {}


def test_the_error_of_a_share() -> None:
    assert share([1.0], [2.0]) == {"mean": 0.5, "standard_error": None}
    # without the first pair 3/1, without the second 1/1
    assert share([1.0, 3.0], [1.0, 1.0]) == {"mean": 2.0, "standard_error": 1.0}


def test_arms_are_presets_or_inputs_that_there_are() -> None:
    known = set(preset_inputs(None, {}))
    for preset, changes in ARMS.values():
        assert set(preset_inputs(preset, changes)) == known
    # one choice apart, so that a difference has one cause
    one, two = (preset_inputs(*ARMS[arm]) for arm in ("through-half-one-call", "through-half"))
    assert {name for name in known if one[name] != two[name]} == {"denoiser_calls"}
    half, full = (preset_inputs(*ARMS[arm]) for arm in ("constant-half", "constant"))
    assert {name for name in known if half[name] != full[name]} == {"range_finder"}
    through = preset_inputs(*ARMS["through-half"])
    assert {name for name in known if half[name] != through[name]} == {"gradient_path"}


@pytest.fixture(scope="module")
def encoder_folder(save_model: Callable[..., Path]) -> Path:
    """A small random encoder, whose embedding is long enough for the projected score."""
    return save_model(hidden_size=64)


def test_a_run_is_finished_by_the_next(
    encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "STEPS", 3)
    target = tmp_path / "paths.json"
    words = [
        "--folder",
        str(tmp_path),
        "--encoder",
        str(encoder_folder),
        "--out",
        str(target),
        "--arms",
        "balanced",
    ]
    main([*words, "--seeds", "1"])
    first = json.loads(target.read_text())["measures"]["projected"]
    assert first["seeds"] == [0]
    assert list(first["arms"]) == [UNGUIDED, FAITHFUL, "balanced"]
    made = read_rows(tmp_path / "samples.jsonl")
    main([*words, "--seeds", "2", "--exact-seeds", "1"])
    measures = json.loads(target.read_text())["measures"]
    assert measures["projected"]["seeds"] == [0, 1]
    assert measures["exact"]["seeds"] == [0]
    assert measures["projected"]["arms"]["balanced"]["change"]["n"] == 2
    assert read_rows(tmp_path / "samples.jsonl")[: len(made)] == made


def test_every_arm_has_a_model(encoder_folder: Path) -> None:
    sampler = evaluate.Sampler(encoder_folder, power_iterations=1)
    assert guided_model(sampler, UNGUIDED) is sampler.model
    for arm in ALL_ARMS[1:]:
        assert guided_model(sampler, arm) is not sampler.model
    assert paths.STRENGTH == 0.5
