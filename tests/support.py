"""Collects test results about samplers and model families; loaded by `dev.py test --long`.

A passed test that recorded the property "support" gives a cell of the matrix: [kind, row, column, verdict]. The file
is written only if all tests passed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

CELLS: dict[str, dict[str, dict[str, str]]] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--support", type=Path, metavar="FILE", help="write the support matrix to FILE")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and report.passed:
        for name, value in report.user_properties:
            if name == "support":
                add(value)


def add(cell: Any) -> None:
    kind, row, column, verdict = cell
    columns = CELLS.setdefault(kind, {}).setdefault(row, {})
    assert columns.setdefault(column, verdict) == verdict, f"two verdicts about {kind} {row}, {column}"


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    file = session.config.getoption("--support")
    if file and exitstatus == 0:
        from comfyui_version import __version__

        ordered = {
            kind: {row: dict(sorted(columns.items())) for row, columns in sorted(rows.items())}
            for kind, rows in sorted(CELLS.items())
        }
        file.write_text(json.dumps({"ComfyUI": __version__, **ordered}, indent=1) + "\n")
