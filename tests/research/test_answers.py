"""What is kept of a run: the program that times it gives the same bits with and without, and the page has its table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from jepa_guidance.host.scoring.answers import known

from research.costs import answers
from research.harness.program import FIGURES
from tests.conftest import ROOT


def test_every_change_gives_the_same_bits_with_what_is_kept_and_without(
    save_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"PICTURES": 3, "STEPS": 1, "IMAGE_SIZE": 28}.items():
        monkeypatch.setattr(answers, name, value)
    encoder = save_model(hidden_size=64)  # long enough for the projected score
    answers.main(["--encoder", str(encoder), "--out", str(tmp_path / "figures.json")])
    found = json.loads((tmp_path / "figures.json").read_text())
    assert [row["case"] for row in found["table"]] == [
        case.name for _, cases in answers.CASES for case in cases
    ]
    assert {row["same"] for row in found["table"]} == {"yes"}
    assert 0 < known.bytes <= known.most_bytes == 64 << 20


def test_outputs_that_differ_are_told() -> None:
    one = (torch.zeros(2), [1.0, "a"])
    assert answers.same(one, (torch.zeros(2), [1.0, "a"]))
    for other in (
        (torch.zeros(2), [1.0, "b"]),
        (torch.tensor([0.0, 1e-30]), [1.0, "a"]),
        (torch.zeros(2), [1.0]),
        (torch.zeros(2), (2.0, "a")),
    ):
        assert not answers.same(one, other)


def test_the_page_quotes_the_figures_that_are_there() -> None:
    figures = json.loads((FIGURES / "answers.json").read_text())
    assert answers.table(figures) in (ROOT / "docs" / "cost.md").read_text(encoding="utf-8")
    assert all(row["same"] == "yes" and row["kept"] < 1 and row["MiB"] < 64 for row in figures["table"])
