"""The D-JEPA that comes with the pack, how it was trained, and the figures that compare it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from jepa_core.djepa import LoadedDJEPA, Tokenizer, load_djepa, load_tokenizer, sample_tokens, to_latents
from research.judges.classifier import load_classifier
from research.training import tokenizer as train_tokenizer
from research.training.djepa import compare, train
from research.training.pictures import Pictures
from research.world.labels import CLASSES
from tests.conftest import ROOT

FOLDER = ROOT / "research" / "training" / "djepa"
WEIGHTS = ROOT / "assets" / "djepa128.safetensors"
SIZES = (
    "--width 16 --depth 1 --heads 2 --head-width 16 --head-depth 1 --buffer 2 --patch 2 --batch 4 --steps 2"
)


@pytest.fixture(scope="module")
def loaded() -> LoadedDJEPA:
    return load_djepa(WEIGHTS)


def test_it_is_small_and_says_what_it_is(loaded):
    assert WEIGHTS.stat().st_size < 16_000_000
    with safe_open(WEIGHTS, framework="pt") as content:
        header = content.metadata()
    assert "CC BY 4.0" in header["data_licence"]
    assert json.loads(header["training"])["jepa_weight"] == 1
    assert loaded.class_names == CLASSES
    assert loaded.tokenizer is None  # it is beside it


def test_its_samples_are_recognised(loaded):
    labels = torch.arange(36) % len(CLASSES)
    tokens = sample_tokens(loaded.model, labels, range(36), steps=16, denoising_steps=20, cfg=2.0)
    tokenizer = load_tokenizer(ROOT / "assets" / "tokenizer128.safetensors")
    pixels = tokenizer.decode(to_latents(tokens, loaded.model.config.patch)).add(1).div(2).clamp(0, 1)
    classifier = load_classifier()
    named = classifier.probabilities(classifier.features(pixels)).argmax(1)
    # one in six by chance
    assert (named == labels).float().mean() > 0.9


def test_the_readme_quotes_the_comparison():
    figures = json.loads((FOLDER / "comparison.json").read_text())
    assert compare.table(figures) in (FOLDER / "README.md").read_text(encoding="utf-8")
    assert compare.NAMES.keys() == figures["rows"].keys()
    assert len({row["images"] for row in figures["rows"].values()}) == 1


class CountingJudges:
    """In place of the trained ones, which are fetched."""

    def __init__(self, world: Pictures, _: Path) -> None:
        self.world = world

    def judge(self, pictures: Tensor, labels: Tensor) -> dict[str, int]:
        assert len(pictures) == len(labels)
        assert 0 <= pictures.min() <= pictures.max() <= 1
        return {"images": len(pictures)}

    def real(self, count: int, _: Tokenizer) -> tuple[Tensor, Tensor, Tensor]:
        unseen = self.world.unseen()
        return unseen.pixels()[:count], unseen.pixels()[:count], unseen.labels[:count]


def pictures(*_: object) -> Pictures:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (48, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return Pictures(images, torch.arange(48) % 6 + 1, torch.arange(48) % 3 == 0, CLASSES, "some licence")


def test_it_is_trained_from_latents_and_compared(tmp_path, monkeypatch):
    for module in (train_tokenizer, compare):
        monkeypatch.setattr(module, "load_pictures", pictures)
    unet = lambda _run, _folder, labels, _cfg: (torch.zeros(len(labels), 3, 32, 32), {"steps": 7})  # noqa: E731
    for name, value in {"Judges": CountingJudges, "drawn_by": unet, "STEPS": 2, "DENOISING_STEPS": 2}.items():
        monkeypatch.setattr(compare, name, value)
    train_tokenizer.main(["--folder", str(tmp_path), "--steps", "2", "--batch", "2"])
    words = [*SIZES.split(), "--tokenizer", str(tmp_path / "tokenizer.safetensors")]
    data = ["--data", str(tmp_path / "latents.safetensors"), "--out", str(tmp_path / "run")]
    train.main([*words, *data, "--held-out", str(tmp_path / "held_out.safetensors")])
    with safe_open(tmp_path / "run" / "djepa.safetensors", framework="pt") as content:
        assert content.metadata()["data_licence"] == "some licence"
    out = tmp_path / "figures.json"
    compare.main(
        ["--folder", str(tmp_path), "--each", "2", "--out", str(out), "--unet", "generator", "--runs", "run"]
    )
    rows = json.loads(out.read_text())["rows"]
    assert list(rows) == ["real", "tokenizer", "unet", "run"]
    assert {row["images"] for row in rows.values()} == {12}
    assert (rows["unet"]["step"], rows["run"]["step"]) == (7, 2)
    with Image.open(tmp_path / "run" / "samples-000002.png") as sheet:
        assert sheet.size == (1024, 1024)
