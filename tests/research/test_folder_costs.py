"""What scoring a folder costs: the program counts what it says, and the page has its table."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jepa_core import load_encoder
from jepa_core.folders.scorer import Scorer, Settings
from jepa_core.reference import NO_SCORE
from research.costs import folders
from research.harness.program import FIGURES
from tests.conftest import ROOT

KINDS = {
    "PNG, 40 x 40": (40, 40, {"format": "PNG"}),
    "JPEG, 64 x 48": (64, 48, {"format": "JPEG", "quality": 90}),
}


def test_each_kind_is_scored_in_each_mode_beside_the_encoder_alone(
    save_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "KINDS", KINDS)
    monkeypatch.setattr(folders, "MODES", {"exact": 2, NO_SCORE: 3})
    out = tmp_path / "figures.json"
    words = ["--encoder", str(save_model()), "--folder", str(tmp_path), "--out", str(out), "--rounds", "2"]
    folders.main(words)
    rows = json.loads(out.read_text())["rows"]
    assert [(row["kind"], row["mode"], row["pictures"]) for row in rows] == [
        (kind, mode, count) for mode, count in (("exact", 2), (NO_SCORE, 3)) for kind in KINDS
    ]
    for row in rows:
        assert len(row["rates_to_encoders"]) == 2
        assert all(rate > 0 for rate in row["rates_to_encoders"])
        assert row["rate_to_encoders"] == pytest.approx(
            statistics.median(row["rates_to_encoders"]), abs=0.001
        )
        assert 0 <= row["waited"] < 1
        many = row["model"]["1e+06"]
        assert many["hours"] == pytest.approx(1e6 * row["command_seconds"] / 3600, abs=0.1)
        assert many["gigabytes"] == pytest.approx((row["journal_bytes"] + row["table_bytes"]) / 1e3, abs=0.1)


def test_the_rate_is_what_the_encoder_takes_alone_of_what_the_command_takes(
    save_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(*arguments: Any) -> Any:
        return replace(score_files(*arguments), seconds=8.0, waiting=2.0)

    def in_six_seconds(what: Callable[[], Any]) -> tuple[Any, float]:
        return what(), 6.0

    score_files = folders.score_files
    monkeypatch.setattr(folders, "KINDS", KINDS)
    monkeypatch.setattr(folders, "score_files", slowly)
    monkeypatch.setattr(folders, "timed", in_six_seconds)
    encoder = load_encoder(save_model())
    scorer = Scorer(
        encoder, Settings("tiny", encoder.fingerprint, encoder.image_size, "squash", "on", NO_SCORE)
    )
    row = folders.measure(folders.files(tmp_path, "PNG, 40 x 40", 4), scorer, 3)
    assert row["rates_to_encoders"] == [0.75] * 3
    assert row["rate_to_encoders"] == 0.75
    assert row["waited"] == 0.25
    assert (row["command_seconds"], row["reading_seconds"]) == (2.0, 1.5)


def test_the_page_quotes_the_figures_that_are_there() -> None:
    figures = json.loads((FIGURES / "folders.json").read_text())
    assert folders.table(figures) in (ROOT / "docs" / "folders.md").read_text(encoding="utf-8")
    # two pictures: the first of 12 megapixels is read while nothing is scored
    assert all(
        row["rate_to_encoders"] > 0.95 - row["waited"] for row in figures["rows"] if row["mode"] != NO_SCORE
    )
