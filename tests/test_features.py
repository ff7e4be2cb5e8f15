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
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


@pytest.mark.parametrize("row", ROWS)
def test_a_feature_has_a_test_that_exists(row: str) -> None:
    assert NAMED.findall(row), row
    check_tests(row)


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_a_test_that_a_page_names_exists(page: Path) -> None:
    check_tests(page.read_text(encoding="utf-8"))


def check_tests(text: str) -> None:
    """Fail if the text names a test that is not there."""
    for file, name in NAMED.findall(text):
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
