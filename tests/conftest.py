"""Loads the pack as its host does, and fixtures that several test files share."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from tools.server import Server

ROOT = Path(__file__).absolute().parents[1]


def folder_from_environment(name: str) -> Path:
    """The folder named by an environment variable that dev.py sets; ends the test run if it is not set."""
    value = os.environ.get(name)
    if not value or not Path(value).is_dir():
        pytest.exit(
            f"{name} is {value!r}, not a folder: run the tests with `python dev.py test`", returncode=4
        )
    return Path(value)


HOST = folder_from_environment("JEPA_HOST")


def put_first(*folders: Path) -> None:
    """Put folders at the front of sys.path, in this order.

    The host goes before the pack: its nodes.py and the pack's nodes/ share a name.
    """
    names = [str(folder) for folder in folders]
    sys.path[:] = names + [entry for entry in sys.path if entry not in names]


def compute_exactly_on_cuda() -> None:
    """No TF32: tests compare with results in float64. The other settings are a user's."""
    torch.backends.cudnn.allow_tf32 = False


put_first(HOST, ROOT)
from research.harness.pack import load_pack  # noqa: E402

compute_exactly_on_cuda()
load_pack()


@pytest.fixture(scope="session")
def encoder_dir() -> Path:
    """The folder of a real trained encoder (a fine-tuned DINOv2 ViT-S/14)."""
    return folder_from_environment("JEPA_ENCODER")


@pytest.fixture(scope="session")
def photos() -> list[torch.Tensor]:
    """Eight varied photos of different sizes, float32 (H, W, 3) in [0, 1]; do not write into them."""
    from research.harness import pictures

    return [photo for _, photo in pictures.photos()]


@pytest.fixture(scope="session")
def server(encoder_dir: Path) -> Iterator[Server]:
    """A running ComfyUI with this pack and the real encoder (models/jepa/<its folder's name>)."""
    from tools.server import Server

    links = {"custom_nodes/jepa-guidance": ROOT, f"models/jepa/{encoder_dir.name}": encoder_dir}
    with Server(HOST, links, cpu=not torch.cuda.is_available()) as running:
        yield running


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The files that take longest, after a run of many."""
    seconds: Counter[str] = Counter()
    for report in terminalreporter.stats.get("passed", []) + terminalreporter.stats.get("", []):
        seconds[report.nodeid.partition("::")[0]] += round(report.duration)
    if len(seconds) > 20:
        terminalreporter.section("slowest files")
        for file, total in seconds.most_common(20):
            terminalreporter.write_line(f"{total} s {file}")
