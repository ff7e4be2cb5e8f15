"""The committed comparison of the demo generator with real pictures, and what its page says of it."""

from __future__ import annotations

import json

from research.training.generator import compare


def test_the_readme_quotes_the_comparison() -> None:
    figures = json.loads((compare.HERE / "comparison.json").read_text())
    assert compare.table(figures) in (compare.HERE / "README.md").read_text(encoding="utf-8")


def test_the_generator_is_recognised_near_real_pictures_and_no_copier() -> None:
    rows = json.loads((compare.HERE / "comparison.json").read_text())["rows"]
    real, tokenizer, drawn = (rows[name] for name in ("real", "tokenizer", "generator"))
    assert real["recognised"] >= 0.99
    assert drawn["recognised"] >= 0.97
    assert drawn["frechet"] < 1.5 * tokenizer["frechet"]
    assert drawn["copies"] < tokenizer["copies"]
