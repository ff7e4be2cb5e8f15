"""Simulated cards: a plan that is right never runs out of memory, and one that is wrong does so once."""

from __future__ import annotations

import json

import pytest
import torch
from jepa_guidance.host.memory import needs
from transformers import Dinov2Config, Dinov2Model

from jepa_core import Encoder
from research.costs import cards
from research.harness.program import FIGURES
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 28}
    config = Dinov2Config(**sizes, image_size=224, attn_implementation="eager")
    return Encoder(Dinov2Model(config).eval().requires_grad_(False), 224)


def run(encoder: Encoder, card: int, batch: int = 1) -> dict:
    (row,) = cards.simulated(encoder, ["SD1.5 at 512"], (card,), (batch,))
    return row


CASES = [(8, 1), *(pytest.param(*case, marks=pytest.mark.long) for case in ((4, 1), (4, 4), (8, 4)))]


@pytest.mark.parametrize(("card", "batch"), CASES)
def test_the_plan_is_what_is_counted_and_nothing_fails(encoder, card, batch):
    found = run(encoder, card, batch)
    assert found["failures"] == found["failures of a second run"] == 0
    assert found["asked"] == "through denoiser"
    assert found["planned GiB"] == pytest.approx(found["counted GiB"], rel=0.15)
    assert found["total GiB"] < card


@pytest.mark.long
def test_a_smaller_card_takes_another_way(encoder):
    ways = [run(encoder, card, 4)["way"] for card in (16, 8, 4)]
    assert ways[0] == "as asked"
    assert len(set(ways)) == 3


@pytest.mark.long
def test_a_plan_that_is_wrong_by_half_fails_once_and_never_again(encoder, monkeypatch):
    right = needs.Needs.__call__
    monkeypatch.setattr(needs.Needs, "__call__", lambda self, way: int(right(self, way) / 2))
    found = run(encoder, 6, 4)
    assert found["failures"] == 1
    assert found["failures of a second run"] == 0
    assert found["way"] != "as asked"


def test_the_page_quotes_the_figures_that_are_there():
    figures = json.loads((FIGURES / "cards.json").read_text())
    text = (ROOT / "docs" / "cost.md").read_text(encoding="utf-8")
    assert cards.table(figures) in text
    assert not any(row["failures"] or row["failures of a second run"] for row in figures["table"])


def test_a_card_runs_out_when_too_much_is_held():
    with cards.Card(1 << 20) as card:
        first = torch.empty(1 << 19, dtype=torch.uint8, device="meta").add_(1)
        del first
        torch.empty(1 << 20, dtype=torch.uint8, device="meta").add_(1)
        assert card.peak == 1 << 20
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty((1 << 20) + 1, dtype=torch.uint8, device="meta").add_(1)
