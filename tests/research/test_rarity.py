"""The statistics of research/effects/rarity.py on small known cases, its spoiled pictures, and its tables."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from jepa_core import jepa_score, load_encoder
from jepa_core.score import PROJECTION
from research.effects import rarity
from research.harness import rarity_figures
from research.harness.agreement import (
    auroc,
    auroc_within,
    explained,
    interval,
    rank_correlation,
    residual,
)
from research.harness.program import FIGURES

NORMAL = np.random.default_rng(1).standard_normal((4, 200))
ALL = np.arange(200)


def test_auroc_counts_pairs():
    unusual, common = np.array([3.0, 1.0, 2.0]), np.array([0.0, 2.0])
    assert auroc(unusual, common) == pytest.approx(4.5 / 6)
    assert auroc(-unusual, -common) == pytest.approx(1.5 / 6)


def test_auroc_within_classes_takes_no_notice_of_what_differs_between_them():
    values = np.array([0.0, 1.0, 2.0, 10.0, 11.0, 12.0])
    unusual = np.array([False, False, True, False, False, True])
    rows = [np.arange(3), np.arange(3, 6)]
    assert auroc_within(values, unusual, rows) == 1
    assert auroc_within(values, unusual, [np.arange(6)]) < 1


def test_one_class_has_the_rank_correlation_of_spearman():
    a, b = NORMAL[0], NORMAL[0].round() + NORMAL[1].round()
    assert rank_correlation(a, b, [ALL]) == pytest.approx(spearmanr(a, b)[0])
    away = b + 100 * (ALL >= 100)
    halves = [ALL[:100], ALL[100:]]
    expected = np.mean([spearmanr(a[some], b[some])[0] for some in halves])
    assert rank_correlation(a, away, halves) == pytest.approx(expected, abs=0.01)


def test_a_partial_correlation_is_that_of_the_textbook():
    a, b, c = NORMAL[0] + NORMAL[2], NORMAL[1] + NORMAL[2], NORMAL[2]
    ab, ac, bc = (spearmanr(x, y)[0] for x, y in ((a, b), (a, c), (b, c)))
    expected = (ab - ac * bc) / ((1 - ac**2) * (1 - bc**2)) ** 0.5
    assert rank_correlation(a, b, [ALL], [c]) == pytest.approx(expected)
    assert ab > 0.3
    assert abs(expected) < 0.15


def test_a_regression_leaves_what_it_does_not_explain():
    a, b, c = NORMAL[:3]
    left = residual(a + 3 * b - 2 * c + 7, [b, c])
    assert left == pytest.approx(residual(a, [b, c]))
    assert [left.mean(), left @ b, left @ c] == pytest.approx([0, 0, 0], abs=1e-9)
    assert explained(3 * b - 2 * c, [b, c], [ALL]) == pytest.approx(1)
    assert explained(a, [b], [ALL]) == pytest.approx(np.corrcoef(a, b)[0, 1] ** 2)
    shifted = b + 50 * (ALL >= 100)
    assert explained(a, [shifted], [ALL[:100], ALL[100:]]) < 0.1


def test_an_interval_is_as_wide_as_theory_says_and_always_the_same():
    found = interval(lambda some: NORMAL[0][some].mean(), [ALL])
    assert found == interval(lambda some: NORMAL[0][some].mean(), [ALL])
    half = 1.96 * NORMAL[0].std() / 200**0.5
    assert found["value"] == pytest.approx(NORMAL[0].mean(), abs=1e-4)
    assert [found["low"], found["high"]] == pytest.approx(
        [NORMAL[0].mean() - half, NORMAL[0].mean() + half], abs=0.03
    )


def test_the_adjusted_score_does_not_change_with_contrast():
    contrast = np.exp(NORMAL[1] / 4)
    columns = {"score": NORMAL[0] + 48 * np.log(contrast), "contrast": contrast}
    left = rarity_figures.adjusted(columns, columns)
    assert np.corrcoef(left, np.log(contrast))[0, 1] == pytest.approx(0, abs=1e-9)


def test_spoiled_pictures_are_pictures_of_the_same_size_that_differ():
    pictures = torch.randint(0, 256, (2, 3, 56, 56), dtype=torch.uint8)
    for name, spoil in rarity.spoilers(56).items():
        made = spoil(pictures)
        assert (made.dtype, made.shape) == (torch.uint8, pictures.shape), name
        assert not torch.equal(made, pictures), name
    shuffled = rarity.spoilers(56)["patches shuffled"](pictures)
    assert torch.equal(shuffled.flatten(1).sort().values, pictures.flatten(1).sort().values)


def test_pictures_of_equal_contrast_keep_their_means():
    pictures = torch.rand(5, 3, 8, 8) * torch.linspace(0.1, 1, 5)[:, None, None, None]
    made = rarity.equal_contrast(pictures)
    assert torch.allclose(made.mean((1, 2, 3)), pictures.mean((1, 2, 3)), atol=1e-6)
    assert torch.allclose(made.flatten(1).std(1), pictures.flatten(1).std(1).median().expand(5), atol=1e-6)


def test_novelty_is_against_the_half_that_lacks_the_picture():
    embedding = torch.eye(20)
    found = rarity.in_halves(
        {"score": torch.arange(20.0), "embedding": embedding, "contrast": torch.ones(20)}, embedding
    )
    assert found["novelty"] == pytest.approx(np.full(20, 2**0.5))
    assert found["score"].tolist() == [-number for number in range(20)]


def test_pictures_are_measured_once_and_as_the_library_does(save_model, tmp_path, monkeypatch):
    encoder = load_encoder(save_model(hidden_size=64)).at_size(56)
    pictures = torch.rand(rarity.PART + 2, 3, 56, 56)
    measure = rarity.Measuring(tmp_path, encoder)
    found = measure("some", pictures)
    x = encoder.preprocess(pictures[-2:].movedim(1, -1))
    assert torch.equal(found["score"][-2:], jepa_score(encoder, x, projection=PROJECTION))
    assert torch.allclose(found["embedding"][-2:], encoder(x), atol=1e-6)
    assert torch.allclose(found["contrast"], pictures.flatten(1).std(1))
    assert torch.equal(measure.exact("some", pictures[-1:]), jepa_score(encoder, x[-1:]))
    monkeypatch.setattr(rarity, "jepa_score", None)  # what is kept is not measured again
    again = measure("some", pictures)
    assert all(torch.equal(found[name], again[name]) for name in found)


def test_the_tables_show_the_committed_figures():
    figures = json.loads((FIGURES / "rarity.json").read_text())
    assert sum(figures["drawings"]["pictures"].values()) == 600
    found = rarity_figures.tables(figures)
    lines = found.splitlines()
    rows = len(rarity_figures.CRITERIA) + 7 + sum(map(len, figures["auroc"].values()))
    assert len(lines) == rows + 3 * 2 + 2
    score = figures["drawings"]["criteria"]["all"]["score"]["rarity"]
    assert f"| score | {score['value']:.2f} ({score['low']:.2f} to {score['high']:.2f}) |" in found
