"""The rule that chooses pictures, on a small archive; what it gives where the archive was downloaded."""

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

import dev
from research.costs.pictures import ARCHIVE, COUNT, FOLDER, PHOTOS, choose, gallery, photos, read_picture
from research.harness.program import FIGURES


def noise(seed: int, channels: int = 3) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, channels), dtype=np.uint8)
    return Image.fromarray(small).resize((40, 40))


def encoded(picture: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=True, **options)
    return buffer.getvalue()


def test_the_rule_leaves_out_animations_second_pictures_and_look_alikes(tmp_path: Path) -> None:
    archive = tmp_path / "pictures.whl"
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr(f"{FOLDER}a-1.webp", encoded(noise(0)))
        content.writestr(f"{FOLDER}a-2.webp", encoded(noise(1)))
        content.writestr(f"{FOLDER}b-1.webp", encoded(noise(2), save_all=True, append_images=[noise(3)]))
        content.writestr(f"{FOLDER}c-1.webp", encoded(noise(0).rotate(2)))
        content.writestr(f"{FOLDER}d-1.webp", encoded(noise(4)))
        content.writestr(f"{FOLDER}e-1.webp", encoded(noise(5)))
        content.writestr("elsewhere/f-1.webp", encoded(noise(6)))
    assert choose(archive, 9) == ["a", "d", "e"]
    assert choose(archive, 1) == ["a"]
    ((name, picture),) = gallery(archive, ["d"])
    assert name == "d"
    assert picture.shape == (40, 40, 3)


def test_transparent_parts_are_white() -> None:
    layers = noise(0, 4)
    layers.putalpha(Image.new("L", layers.size, 0))
    picture = read_picture(encoded(layers))
    assert picture is not None
    assert picture.min() == 1


def test_photos() -> None:
    found = dict(photos())
    assert len(found) == 8
    for photo in found.values():
        assert photo.shape[-1] == 3
        assert photo.dtype == torch.float32
        assert 0 <= photo.min() < photo.max() <= 1


def test_the_rule_gives_the_pictures_of_the_figures() -> None:
    archive = dev.cache_folder(os.environ, platform.system(), Path.home()) / "downloads" / ARCHIVE.filename
    if not archive.exists():
        pytest.skip("the archive of pictures was not downloaded")
    dev.verify(archive, ARCHIVE.sha256)
    chosen = choose(archive)
    assert len(chosen) == COUNT
    ranked = json.loads((FIGURES / "score.json").read_text())["exact_scores"]
    assert set(ranked) <= {*chosen, *PHOTOS}
