"""The D-JEPA that comes with the pack, and the figures that compare it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from scipy.linalg import sqrtm

from jepa_core.djepa import LoadedDJEPA, load_djepa, sample_tokens, to_latents
from research.judges.measures import judge, load_bank, load_classifier
from research.training.djepa import compare
from tests.conftest import ROOT

FOLDER = ROOT / "research" / "training" / "djepa"
WEIGHTS = ROOT / "assets" / "djepa64.safetensors"


@pytest.fixture(scope="module")
def loaded() -> LoadedDJEPA:
    return load_djepa(WEIGHTS)


def test_it_is_small_and_says_what_it_is(loaded):
    assert WEIGHTS.stat().st_size < 20_000_000
    with safe_open(WEIGHTS, framework="pt") as content:
        header = content.metadata()
    assert "MIT" in header["data_licence"]
    assert json.loads(header["training"])["jepa_weight"] == 1
    assert loaded.class_names == ("face", "person", "heart", "hand", "sky", "fruit", "clock")
    assert loaded.tokenizer is not None


def test_its_samples_are_recognised_and_no_copies(loaded):
    labels = torch.arange(28) % 7
    tokens = sample_tokens(loaded.model, labels, range(28), steps=16, denoising_steps=20, cfg=2.0)
    pixels = loaded.tokenizer.decode(to_latents(tokens, 1)).add(1).div(2).clamp(0, 1)
    found = judge(pixels, labels + 1, load_bank(), load_classifier(), None)
    # one in seven by chance
    assert found["recognised"].mean() > 0.6
    assert found["copy_distance"].min() > 0.02


def test_the_frechet_distance_is_the_formula():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(200, 6)), 2 * rng.normal(size=(150, 6)) @ rng.normal(size=(6, 6)) + 1
    means = ((a.mean(0) - b.mean(0)) ** 2).sum()
    one, two = np.cov(a.T), np.cov(b.T)
    expected = means + np.trace(one + two - 2 * sqrtm(one @ two).real)
    assert compare.frechet_distance(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(
        expected, rel=1e-6
    )
    assert compare.frechet_distance(torch.from_numpy(a), torch.from_numpy(a)) == pytest.approx(0, abs=1e-6)


def test_the_readme_quotes_the_comparison():
    figures = json.loads((FOLDER / "comparison.json").read_text())
    assert compare.table(figures) in (FOLDER / "README.md").read_text(encoding="utf-8")
    assert {"real", "unet", "diffusion", "flow", "flow0"} <= figures["rows"].keys()
