"""The tests named in the table of features exist, and CI runs them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).absolute().parents[1]
ROWS = [line for line in (ROOT / "docs" / "features.md").read_text().splitlines() if line.startswith("| ")][
    2:
]


@pytest.mark.parametrize("row", ROWS)
def test_a_feature_has_a_test_that_exists(row: str) -> None:
    tests = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
    assert tests, row
    for file, name in tests:
        assert f"\ndef {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file} has no {name}"


def test_ci_runs_the_tests_and_publishing_needs_them() -> None:
    folder = ROOT / ".github" / "workflows"
    test, publish = (yaml.safe_load((folder / name).read_text()) for name in ("test.yml", "publish.yml"))
    steps = test["jobs"]["test"]["steps"]
    assert any(step.get("run") == "python dev.py test" for step in steps)
    (tests,) = [name for name, job in publish["jobs"].items() if job.get("uses", "").endswith("test.yml")]
    (publishing,) = [
        job
        for job in publish["jobs"].values()
        if any("publish-node-action" in step.get("uses", "") for step in job.get("steps", ()))
    ]
    assert tests in publishing["needs"]
