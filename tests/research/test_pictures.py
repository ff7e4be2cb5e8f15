"""The rule that chooses pictures, on a small archive; the list itself where the archive was downloaded."""

from __future__ import annotations

import io
import os
import platform
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from research.costs.pictures import ARCHIVE, FOLDER, NAMES, choose, gallery, photos, read_picture
from tools.environment.building import verify
from tools.environment.components import cache_folder


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
    ((name, picture),) = gallery(["d"], archive)
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


def test_the_list_is_what_the_rule_gives() -> None:
    assert len(set(NAMES)) == 88
    archive = cache_folder(os.environ, platform.system(), Path.home()) / "downloads" / ARCHIVE.filename
    if not archive.exists():
        pytest.skip("the archive of pictures was not downloaded")
    verify(archive, ARCHIVE.sha256)
    assert tuple(choose(archive)) == NAMES
