"""Experiments are resumable, and their figures are those of the same seeds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from research.effects import evaluation, strengths
from research.effects.paths import ALL_ARMS, ARMS, FAITHFUL, main, model_of, summarise, table
from research.harness.images import UNGUIDED, Sampler
from research.harness.pack import ROOT
from research.harness.pack_api import preset_inputs
from research.harness.program import FIGURES, read_rows
from research.harness.summary import share


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
    assert FAITHFUL in table({"measures": {"projected": {"arms": found}}})
    assert summarise(seconds, {}, arms) == {}


def test_the_error_of_a_share() -> None:
    assert share([1.0], [2.0]) == {"mean": 0.5, "standard_error": None}
    # without the first pair 3/1, without the second 1/1
    assert share([1.0, 3.0], [1.0, 1.0]) == {"mean": 2.0, "standard_error": 1.0}


def test_arms_are_presets_or_inputs_that_there_are() -> None:
    known = set(preset_inputs())
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


def test_a_run_is_finished_by_the_next(encoder_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "paths.json"
    words = ["--folder", str(tmp_path), "--encoder", str(encoder_folder), "--out", str(target)]
    words += ["--steps", "3", "--arms", "subtle"]
    main([*words, "--seeds", "1"])
    first = json.loads(target.read_text())["measures"]["projected"]
    assert first["seeds"] == [0]
    assert list(first["arms"]) == [UNGUIDED, FAITHFUL, "subtle"]
    made = read_rows(tmp_path / "samples.jsonl")
    main([*words, "--seeds", "2"])
    measures = json.loads(target.read_text())["measures"]
    assert measures["projected"]["seeds"] == [0, 1]
    assert measures["projected"]["arms"]["subtle"]["change"]["n"] == 2
    assert read_rows(tmp_path / "samples.jsonl")[: len(made)] == made


def test_every_arm_has_a_model(encoder_folder: Path) -> None:
    sampler = Sampler(encoder_folder)
    assert model_of(sampler, UNGUIDED) is sampler.model
    for arm in ALL_ARMS[1:]:
        assert model_of(sampler, arm) is not sampler.model
    assert all(preset_inputs(*ARMS[arm])["strength"] == 0.5 for arm in ARMS)


def test_strengths_are_drawn_and_resumed(encoder_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "strengths.json"
    words = ["--folder", str(tmp_path), "--encoder", str(encoder_folder), "--out", str(target)]
    words += [
        "--steps",
        "2",
        "--seeds",
        "1",
        "--inputs",
        "start_percent=0.0",
        "--paths",
        "denoiser constant",
        "--strengths",
        "0",
    ]
    strengths.main(words)
    made = read_rows(tmp_path / "samples.jsonl")
    strengths.main([*words, "4"])
    record = json.loads(target.read_text())
    means = record["means"]["denoiser constant"]
    assert means["0"]["pixel_change"] == means["0"]["score_change"] == 0
    assert means["4"]["pixel_change"] > 0
    assert [row["strength"] for row in record["images"]] == [0, 4]
    assert read_rows(tmp_path / "samples.jsonl")[: len(made)] == made
    assert (tmp_path / "denoiser-constant-robot.png").stat().st_size > 1000


@pytest.mark.long
def test_the_evaluation_runs_and_is_finished(encoder_dir: Path, tmp_path: Path) -> None:
    target = tmp_path / "evaluation.json"
    words = ["--folder", str(tmp_path), "--encoder", str(encoder_dir), "--out", str(target)]
    words += ["--inputs", "power_iterations=0", "interval=6", "--seeds", "1"]
    evaluation.main(words)
    made = json.loads(target.read_text())
    evaluation.main([*words, "--finish"])
    assert json.loads(target.read_text())["measures"] == made["measures"]
    assert list(made["measures"]["projected"]) == list(evaluation.ARMS)
    assert made["settings"]["projection"] == 48
    assert len(made["arms"]) == 5
    assert target.with_suffix(".png").stat().st_size > 1000


def test_the_results_page_has_the_table_of_the_committed_evaluation() -> None:
    figures = json.loads((FIGURES / "evaluation.json").read_text())
    assert evaluation.table(figures) in (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
