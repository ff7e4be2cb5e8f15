"""A tiny encoder, pictures of any kind, and the command run as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jepa_core import load_encoder
from jepa_core.folders.scorer import Scorer, Settings
from tests.conftest import ROOT

SIZE = 28


@pytest.fixture(scope="session")
def encoder_folder(save_model: Callable[..., Path]) -> Path:
    """The folder of a random encoder that loads as any other does: d = 64."""
    return save_model(hidden_size=64)


@pytest.fixture(scope="session")
def scorer(encoder_folder: Path) -> Scorer:
    return scorer_of(encoder_folder)


def scorer_of(folder: Path, **changes: Any) -> Scorer:
    """As the command makes it, with --image-size 28."""
    encoder = load_encoder(folder, image_size=changes.pop("image_size", SIZE))
    stated = {"fit": "squash", "antialias": "on", "mode": "projected on 8 outputs"} | changes
    return Scorer(encoder, Settings(folder.name, encoder.fingerprint, encoder.image_size, **stated))


def save(file: Path, seed: int = 0, size: tuple[int, int] = (30, 40), mode: str = "RGB", **how: Any) -> Path:
    """A random picture (height, width)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    shape = size if mode == "L" else (*size, len(mode))
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels, mode if mode == "CMYK" else None).save(file, **how)
    return file


def command(*arguments: object, **changes: Any) -> subprocess.CompletedProcess[str]:
    """Run python -m jepa_core to its end."""
    words = [sys.executable, "-m", "jepa_core", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        words, capture_output=True, text=True, env=environment, timeout=300, check=False, **changes
    )
