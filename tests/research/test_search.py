"""A search of the demo world at a tiny size, its figures on known values, and the page that quotes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jepa_core.reference import mode_of
from research.effects import search
from research.effects.novelty import INPUTS
from research.harness.batches import REAL, Study
from research.harness.images import UNGUIDED, Sampler
from research.harness.pack_api import NOVELTY, SCORE, make_reference, seen_as
from research.harness.program import FIGURES
from research.harness.search_figures import Figures
from research.harness.searches import CANDIDATES, KEPT, SHARES, Searches
from tests.conftest import ROOT

ARMS = {
    NOVELTY: {arm: search.ARMS[NOVELTY][arm] for arm in (UNGUIDED, "novelty: search 16")},
    SCORE: {"score: search 16": search.ARMS[SCORE]["score: search 16"]},
}
UNIT = ("robot", 0)


class Judge:
    """In place of the one that is downloaded."""

    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        return pictures.mean((2, 3))

    def judge(self, pictures: torch.Tensor, labels: torch.Tensor, features: torch.Tensor) -> dict:
        return {name: features[:, 0] for name in search.novelty.HEADINGS if name != "vendi"}


@pytest.fixture(scope="module")
def made(save_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Searches:
    """Searches with a small random encoder, whose embedding is long enough for the projected score."""
    sampler = Sampler(save_model(hidden_size=64), steps=10, image_size=28)
    world: Any = SimpleNamespace()
    study = Study(tmp_path_factory.mktemp("search"), sampler, world, INPUTS)
    pictures = list(torch.rand(6, 32, 32, 3, generator=torch.Generator().manual_seed(0)))
    how = {"mode": mode_of(None)} | seen_as("squash", True)
    study.references[REAL, "robot"] = make_reference(pictures, sampler.encoder, how)
    made = Searches(study)
    for by, arms in ARMS.items():
        made.values(by, *UNIT)
        for arm, how_made in arms.items():
            made.of_arm(arm, how_made, *UNIT)
    return made


def test_a_search_keeps_the_stock_pictures_that_rank_first(made: Searches) -> None:
    figures = Figures(made, Judge(), [UNIT, ("robot", 1)], ARMS)  # type: ignore[arg-type]
    assert figures.units == {NOVELTY: [UNIT], SCORE: [UNIT]}
    for one in figures.off_stock().values():
        assert one["pictures"] == KEPT
        assert one["largest_difference"] < 1e-4
    arms = figures.by_arm()
    assert set(arms) == {UNGUIDED, *ARMS[NOVELTY], *ARMS[SCORE], "novelty: best of 16", "score: best of 16"}
    assert arms["novelty: best of 16"]["novelty"]["change"]["mean"] > 0
    assert arms["score: best of 16"]["score"]["change"]["mean"] < 0
    for by in (NOVELTY, SCORE):
        values = made.values(by, *UNIT)["values"]
        assert values.shape == (len(SHARES) + 1, CANDIDATES)
        assert torch.equal(figures.guided_by(by, "stock", UNIT), values[-1])
        assert figures.guided_by(by, UNGUIDED, UNIT).tolist() == pytest.approx(
            values[-1, :KEPT].tolist(), rel=1e-3
        )
    found = {"looks": figures.looks(search.SCHEDULES), "arms": arms, "equal": figures.equal()}
    ranks, schedules, of_arms, _ = search.tables(found)
    assert ranks.count("\n") == len(SHARES) + 1
    assert schedules.count("\n") == len(search.SCHEDULES) + 1
    assert of_arms.count("\n") == len(arms) + 1


def test_what_a_schedule_keeps(made: Searches, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = Figures(made, Judge(), [UNIT], ARMS)  # type: ignore[arg-type]
    values = torch.arange(CANDIDATES).float().repeat(len(SHARES) + 1, 1)
    values[SHARES.index(0.5)] = -values[0]  # a look at half of the steps is all wrong
    monkeypatch.setattr(figures, "values", lambda by, unit: values)
    right, wrong = figures.schedule(NOVELTY, (0.4, 0.7)), figures.schedule(NOVELTY, (0.5,))
    assert (right["best_kept"]["mean"], right["gain_kept"]["mean"]) == (1, 1)
    assert (wrong["best_kept"]["mean"], wrong["gain_kept"]["mean"]) == (0, -1)
    assert right["work"] == (16 * 4 + 8 * 3 + 4 * 3) / 160
    assert (right["appraised"], wrong["appraised"]) == (16 + 8 + 4, 16 + 4)


def test_the_results_page_has_the_tables_of_the_committed_figures() -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    figures = json.loads((FIGURES / "search.json").read_text())
    for one in search.tables(figures):
        assert one in page


def test_sizes_guide_as_encoders_of_their_own(made: Searches) -> None:
    study = made.study
    assert study.guide() is study.sampler.encoder
    members = study.guide((28, 42)).members
    assert [(member.encoder.image_size, member.weight) for member in members] == [(28, 0.5), (42, 0.5)]
    assert {member.encoder.patcher for member in members} == {study.sampler.encoder.patcher}
