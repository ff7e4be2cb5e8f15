"""The programs that turn measurements into figures, and the pages that quote them."""

from __future__ import annotations

import math

import pytest
import torch

from jepa_core import RarityGradient
from research import bench as run
from research.costs import gradient, score
from research.harness.pack_api import RANGE_FINDERS, WAYS
from research.harness.program import markdown
from tests.conftest import ROOT

# The page in docs/ that shows the table of a part.
PAGES = {
    "gradient": "cost",
    "step": "cost",
    "paths": "cost",
    "cuda": "cost",
    "guides": "encoders",
    "djepa": "djepa",
}


def row(arm, place, seconds, cosine, calls=4, trajectory="unguided-s20-2"):
    return gradient.Measured(trajectory, place, arm, seconds, cosine, calls, None)


def test_ratios_are_of_mean_seconds_and_the_photo_does_not_count_as_sampling():
    arm = next(iter(gradient.ARMS))
    arms = (gradient.PAPER, *gradient.ARMS, gradient.FLOOR)
    rows = [row(name, place, 6.0, 0.9) for name in arms for place in (0, 1)]
    rows = [one for one in rows if one.arm != arm]
    rows += [row(arm, 0, 4.0, 0.98, 7), row(arm, 1, 2.0, 1.0), row(arm, 2, 0.0, 0.99)]
    rows += [row(name, 0, 100.0, 0.5, trajectory=gradient.FOCUS) for name in arms]
    table = gradient.summary(rows)
    assert list(table) == ["s20", "focus", "all"]
    figures = table["all"][arm]
    assert figures["seconds"] == 2.0
    assert figures["ratio"] == 3.0
    assert figures["ratio_after_first_step"] == 6.0
    assert (figures["cosine_median"], figures["cosine_worst"]) == (0.99, 0.98)
    assert (figures["calls_mean"], figures["calls_most"]) == (5.0, 7)
    assert table["focus"][arm]["cosine_worst"] == 0.5


def test_the_arms_are_the_presets():
    for preset in ("faithful", "subtle", "fast"):
        (settings,) = (arm for name, arm in gradient.ARMS.items() if f"({preset})" in name)
        measured = RarityGradient(**settings)
        inputs = WAYS[preset]
        finder = RANGE_FINDERS[inputs["range_finder"]]
        shipped = RarityGradient(inputs["rank"], inputs["oversampling"], inputs["power_iterations"], **finder)
        for name in ("k", "oversample", "power_iterations", "tracked", "half"):
            assert getattr(measured, name) == getattr(shipped, name), (preset, name)
        if shipped.tracked:
            assert measured.tolerance == shipped.tolerance


def matrices(size=24):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(size, 200, generator=generator, dtype=torch.float64)
    rows *= (0.9 ** torch.arange(size))[:, None]
    return rows, {"exact": rows @ rows.T}


def test_scores_from_a_gram_matrix():
    rows, found = matrices()
    sigma = torch.linalg.svdvals(rows)
    assert score.score_of(found["exact"], 24) == pytest.approx(sigma.log().sum().item(), rel=1e-9)
    assert score.largest(5, found) == pytest.approx(sigma[:5].log().sum().item(), rel=1e-9)
    outputs = score.random_outputs(24).double()
    assert len(outputs) == 24  # no more than there are
    expected = torch.linalg.svdvals(outputs[:6] @ rows).log().sum().item()
    assert score.fewer_outputs("exact", 6, found) == pytest.approx(expected, rel=1e-6)


def test_quadrature_is_exact_with_all_steps_and_near_with_few():
    rows, found = matrices()
    exact = torch.linalg.svdvals(rows).log().sum().item()
    # a probe's error is statistical, so the mean over many probes is compared
    assert score.quadrature(400, 12, found) == pytest.approx(exact, abs=0.5)
    assert score.quadrature(1, 12, found) != pytest.approx(exact, abs=1e-6)


def test_the_pages_quote_the_figures_that_are_there():
    figures = run.read()
    assert list(figures) == list(run.PARTS)
    texts = {
        page: (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
        for page in {*PAGES.values(), "scoring"}
    }
    for part, page in PAGES.items():
        assert run.TABLES[part](figures[part]) in texts[page], part
    for page in ("cost", "scoring"):
        assert f"{figures['score']['shipped']['spearman']:.3f}" in texts[page]
    assert run.TABLES["memory"](figures["memory"]).count("preset") >= 2
    assert figures["score"]["pictures"] >= 64
    assert math.isfinite(sum(figures["score"]["exact_scores"].values()))


def test_tables_are_markdown():
    found = markdown({"a": "{x}", "b": "{y[0]:.1f}"}, [{"x": 1, "y": [2.52]}, {"x": None}, {"y": None}])
    assert found == "| a | b |\n| --- | --- |\n| 1 | 2.5 |\n| None |  |\n|  |  |"
