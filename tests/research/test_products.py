"""Products with the Jacobian: the program that times them compares two ways, and the page has its table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from research.costs import products
from research.harness.program import FIGURES
from tests.conftest import ROOT


def test_both_ways_of_forward_mode_give_the_same(
    save_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "SIDES", (28, 14))
    products.main(["--encoder", str(save_model()), "--out", str(tmp_path / "figures.json")])
    found = json.loads((tmp_path / "figures.json").read_text())
    assert [row["pixels"] for row in found["table"]] == [28, 14]
    assert all(row["difference"] < 1e-5 and row["forward"] > 0 for row in found["table"])


def test_the_page_quotes_the_figures_that_are_there() -> None:
    figures = json.loads((FIGURES / "products.json").read_text())
    assert products.table(figures) in (ROOT / "docs" / "cost.md").read_text(encoding="utf-8")
    assert all(row["difference"] < 1e-5 for row in figures["table"])
