"""The measures of pictures guided by novelty, on small known cases, and the page that quotes them."""

from __future__ import annotations

import json

import pytest
import torch

from research.effects import novelty, novelty_map
from research.harness.program import FIGURES
from research.harness.summary import mean_and_error
from research.judges.effects import MINORITY, has_rare_value, vendi
from research.world.labels import COLUMNS
from tests.conftest import ROOT


def test_the_vendi_score_counts_what_differs():
    same = torch.ones(4, 8)
    assert vendi(same) == pytest.approx(1)
    assert vendi(torch.eye(8)[:4]) == pytest.approx(4)
    pairs = torch.eye(8)[[0, 0, 1, 1]]
    assert vendi(pairs) == pytest.approx(2)
    assert vendi(3 * pairs) == pytest.approx(2)


def test_a_row_with_a_rare_value_is_a_minority():
    for column, (_, described) in enumerate(COLUMNS):
        for value, share in enumerate(described.shares):
            row = torch.full((1, len(COLUMNS)), -1)
            row[0, column] = value
            assert has_rare_value(row).item() == (share <= MINORITY)
    assert not has_rare_value(torch.full((1, len(COLUMNS)), -1)).item()


def test_arms_have_names_of_their_own_and_pairs_with_and_without_a_target():
    arms = novelty.arms_of(list(novelty.GROUPS))
    assert len(arms) == 1 + sum(len(group) for group in novelty.GROUPS.values())
    for name, arm in arms.items():
        if arm is not None and "target" in arm.inputs:
            assert name.endswith(novelty.TARGETED)
            free = arms[name.removesuffix(novelty.TARGETED)]
            assert free is not None
            assert free.inputs == {key: value for key, value in arm.inputs.items() if key != "target"}


def test_further_pictures_are_pooled_with_what_the_figures_hold():
    torch.manual_seed(0)
    earlier, later = torch.randn(32).tolist(), (3 + 2 * torch.randn(48)).tolist()
    parts = [
        {"pictures": len(own), "distance": mean_and_error(own) | {"change": mean_and_error(own)}}
        for own in (earlier, later)
    ]
    together = mean_and_error(earlier + later)
    found = novelty.joined(*parts)
    assert found["pictures"] == 80
    for value in (found["distance"], found["distance"]["change"]):
        assert value["n"] == 80
        assert value["mean"] == pytest.approx(together["mean"], abs=2e-5)
        assert value["standard_error"] == pytest.approx(together["standard_error"], abs=2e-5)


def test_batches_that_the_figures_hold_are_not_counted_again():
    rows = {"a": {"pictures": 2 * novelty.BATCH * 6}}
    assert novelty.held_batches(rows, ["a", "new"], 6) == {"a": 2, "new": 0}


def test_the_results_page_has_the_tables_of_the_committed_figures():
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    figures = json.loads((FIGURES / "novelty.json").read_text())
    assert novelty.table(figures) in page
    assert all(one["pictures"] >= 96 for one in figures["arms"].values())
    scoring = (ROOT / "docs" / "scoring.md").read_text(encoding="utf-8")
    found = json.loads((FIGURES / "novelty_map.json").read_text())["auroc"]
    assert f"AUROC of {found['norm of the gradient']['mean']:.2f}" in scoring
    assert novelty_map.table({"auroc": found}).count("+-") == len(novelty_map.MAPS)
