"""Pictures as they are read from a small archive; the list itself where the archive was downloaded."""

from __future__ import annotations

import io
import json
import os
import platform
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from research.harness.pictures import ARCHIVE, FOLDER, NAMES, PHOTOS, gallery, photos, read_picture
from research.harness.program import FIGURES
from tools.environment.building import verify
from tools.environment.components import cache_folder


def noise(channels: int = 3) -> Image.Image:
    small = np.random.default_rng(0).integers(0, 256, (8, 8, channels), dtype=np.uint8)
    return Image.fromarray(small).resize((40, 40))


def encoded(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def test_the_first_picture_of_a_template_is_read(tmp_path: Path) -> None:
    archive = tmp_path / "pictures.whl"
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr(f"{FOLDER}a-1.webp", encoded(noise()))
        content.writestr(f"{FOLDER}a-2.webp", encoded(noise().rotate(90)))
    ((name, picture),) = gallery(archive, ["a"])
    assert name == "a"
    assert np.array_equal(picture.mul(255).round().byte().numpy(), np.asarray(noise()))


def test_transparent_parts_are_white() -> None:
    layers = noise(4)
    layers.putalpha(Image.new("L", layers.size, 0))
    assert read_picture(encoded(layers)).min() == 1


def test_photos() -> None:
    found = dict(photos())
    assert len(found) == 8
    for photo in found.values():
        assert photo.shape[-1] == 3
        assert photo.dtype == torch.float32
        assert 0 <= photo.min() < photo.max() <= 1


def test_the_list_holds_the_pictures_of_the_figures() -> None:
    assert len(set(NAMES)) == 88
    ranked = json.loads((FIGURES / "score.json").read_text())["exact_scores"]
    assert set(ranked) <= {*NAMES, *PHOTOS}


def test_the_archive_holds_the_list() -> None:
    archive = cache_folder(os.environ, platform.system(), Path.home()) / "downloads" / ARCHIVE.filename
    if not archive.exists():
        pytest.skip("the archive of pictures was not downloaded")
    verify(archive, ARCHIVE.sha256)
    assert [name for name, _ in gallery(archive)] == NAMES
