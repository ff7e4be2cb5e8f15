"""Judges that are fetched: the package index is reached only by the tests marked long."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import skimage.data
import torch

from research.harness import wheels
from research.judges.comparison import variations
from research.judges.distances import EfficientNetLite0, frechet_distance
from research.world import labels
from tools.environment.pinned import Archive


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fetched")


def test_what_cannot_be_fetched_ends_the_program_with_a_message(tmp_path: Path) -> None:
    wrong = Archive("torch-fidelity", "0.4.0", wheels.FIDELITY.filename, "0" * 64, 1)
    (tmp_path / wrong.filename).write_bytes(b"")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wheels, "pip", lambda *_: None)
        with pytest.raises(SystemExit, match="torch-fidelity"):
            wheels.use(wrong, tmp_path)
    assert str(tmp_path / wrong.filename) not in sys.path


def test_variation_is_half_the_sum_of_differences() -> None:
    rows = labels.draw(7, 6000)
    assert max(variations(rows.attributes).values()) < 0.06
    first = rows.attributes.clamp(max=0)
    for name, (_, described) in zip(labels.NAMES, labels.COLUMNS, strict=True):
        assert variations(first)[name] == pytest.approx(1 - described.shares[0], abs=1e-5)


@pytest.mark.long
def test_frechet_distance_of_normal_distributions_is_the_known_one(folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(200_000, 3, generator=generator)
    b = 2 * torch.randn(200_000, 3, generator=generator) + torch.tensor([3.0, 0.0, 0.0])
    assert frechet_distance(a, b, folder) == pytest.approx(9 + 3 * (2 - 1) ** 2, rel=0.02)
    assert frechet_distance(a, a, folder) == pytest.approx(0, abs=1e-6)


@pytest.mark.long
def test_the_judge_names_photos(folder: Path) -> None:
    """Its classes are ImageNet's: 285 is an Egyptian cat, 967 espresso."""
    judge = EfficientNetLite0(folder)
    for photo, expected in ((skimage.data.chelsea(), 285), (skimage.data.coffee(), 967)):
        pixels = torch.from_numpy(photo).movedim(-1, 0)[None].float() / 255
        side = min(pixels.shape[-2:])
        top, left = ((size - side) // 2 for size in pixels.shape[-2:])
        features = judge.features(pixels[..., top : top + side, left : left + side])
        named = judge.network._fc(features).softmax(1)
        assert named.argmax() == expected
        assert named.max() > 0.3
