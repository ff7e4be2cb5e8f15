"""research/training/djepa/train.py: resumed, distributed, and with data that cannot be used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from jepa_core.djepa import Tokenizer, load_djepa
from research.training.djepa import train as train_djepa
from tests.conftest import ROOT

WORDS = "--width 16 --depth 1 --heads 2 --head-width 16 --head-depth 1 --buffer 2 --batch 4 --peak 1e-3 --warmup 2"
SMALL = [*WORDS.split(), "--report-every", "2", "--sheet-every", "4"]


@pytest.fixture
def latents(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    file = tmp_path / "latents.safetensors"
    tensors = {"latents": torch.randn(12, 16, 4, 4, generator=generator), "labels": torch.arange(12) % 3}
    save_file(tensors, file, metadata={"classes": '["a", "b", "c"]'})
    return file


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for index in range(3):
            pixels = np.full((20, 30, 3), 40 * index, np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def train(*words: object) -> None:
    train_djepa.main([*SMALL, *map(str, words)])


def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path, latents, monkeypatch):
    common = ("--data", latents, "--held-out", latents, "--dropout", 0.1)
    train(*common, "--out", tmp_path / "whole", "--steps", 4)
    # interrupted after the second step: with 4 steps in all, stopped by an error in the third
    real, seen = train_djepa.training_losses, []

    def failing(*arguments):
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(train_djepa, "training_losses", failing)
    with pytest.raises(KeyboardInterrupt):
        train(*common, "--out", tmp_path / "parts", "--steps", 4)
    monkeypatch.setattr(train_djepa, "training_losses", real)
    train(*common, "--out", tmp_path / "parts", "--steps", 4)
    whole, parts = (load_file(tmp_path / name / "djepa.safetensors") for name in ("whole", "parts"))
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, atol=1e-6, rtol=1e-3)
    rows = json.loads((tmp_path / "whole" / "loss.json").read_text())["rows"]
    assert [row["step"] for row in rows] == [2, 4]
    assert rows[1]["held_out_denoising"] > 0
    assert (tmp_path / "whole" / "loss.png").stat().st_size > 1000


def test_the_losses_fall(tmp_path):
    tensors = {"latents": torch.ones(4, 16, 4, 4), "labels": torch.zeros(4, dtype=torch.long)}
    save_file(tensors, tmp_path / "ones.safetensors")
    run = ("--data", tmp_path / "ones.safetensors", "--out", tmp_path / "run")
    train(*run, "--steps", 40, "--denoiser", "flow", "--peak", 1e-2, "--precision", "no")
    rows = json.loads((tmp_path / "run" / "loss.json").read_text())["rows"]
    assert rows[-1]["denoising"] < 0.9 * rows[0]["denoising"]
    assert rows[-1]["jepa"] < 0.9 * rows[0]["jepa"]


def test_a_folder_of_images_is_trained_on_pixels(tmp_path, pictures):
    train("--data", pictures, "--image-size", 16, "--patch", 4, "--out", tmp_path / "run", "--steps", 4)
    loaded = load_djepa(tmp_path / "run" / "djepa.safetensors")
    assert loaded.class_names == ("cat", "dog")
    assert (loaded.model.config.tokens, loaded.model.config.token_width) == (16, 48)
    with Image.open(tmp_path / "run" / "samples-000004.png") as sheet:
        assert sheet.size == (1024, 1024)


def test_classes_are_the_subfolders_that_hold_pictures(pictures):
    """Programs and systems leave folders of their own, with pictures in some of them."""
    for name in (".ipynb_checkpoints", "__MACOSX", ".hidden", "@eaDir", "empty", "notes"):
        (pictures / name).mkdir()
    for name in (".ipynb_checkpoints", "__MACOSX", ".hidden", "@eaDir", "cat/.thumbnails"):
        (pictures / name).mkdir(exist_ok=True)
        (pictures / name / "0.png").write_bytes((pictures / "cat" / "0.png").read_bytes())
    (pictures / "cat" / "._0.png").write_bytes(b"what a system notes of a picture")
    (pictures / "notes" / "note.txt").write_text("no picture")
    (pictures / "dog" / "puppies").mkdir()
    (pictures / "dog" / "puppies" / "0.png").write_bytes((pictures / "dog" / "0.png").read_bytes())
    found = train_djepa.Images(pictures, 16)
    assert found.classes == ["cat", "dog"]
    assert found.labels.tolist() == [0] * 3 + [1] * 4


PIXELS = np.arange(8 * 12 * 3, dtype=np.uint8).reshape(8, 12, 3)


def turned(file: Path) -> np.ndarray:
    exif = Image.Exif()
    exif[0x0112] = 6  # a phone that was held upright
    Image.fromarray(PIXELS).save(file, exif=exif)
    return np.rot90(PIXELS, -1)


def of_a_palette(file: Path) -> np.ndarray:
    picture = Image.fromarray(PIXELS).quantize(16)
    picture.save(file, transparency=picture.getpixel((0, 0)))
    seen = np.array(picture.convert("RGB"))
    seen[np.array(picture) == picture.getpixel((0, 0))] = 255
    return seen


def deep(file: Path) -> np.ndarray:
    grey = np.linspace(0, 65535, 96, dtype=np.uint16).reshape(8, 12)
    Image.fromarray(grey).save(file)
    return np.repeat(np.round(grey / 257).astype(np.uint8)[..., None], 3, -1)


def moving(file: Path) -> np.ndarray:
    frames = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)]
    frames[0].save(file, save_all=True, append_images=frames[1:])
    return PIXELS


@pytest.mark.parametrize("write", [turned, of_a_palette, deep, moving])
def test_a_picture_is_trained_on_as_it_is_seen(tmp_path, write):
    file = tmp_path / "picture.png"
    seen = write(file)
    assert np.array_equal(np.asarray(train_djepa.on_white(str(file))), seen)


def test_held_out_images_have_the_labels_of_the_trained_ones(tmp_path, pictures):
    held_out = tmp_path / "held_out"
    (held_out / "dog").mkdir(parents=True)
    (held_out / "dog" / "0.png").write_bytes((pictures / "dog" / "0.png").read_bytes())
    options = train_djepa.parse(["--data", str(pictures), "--out", "out", "--steps", "1"])
    data = train_djepa.Images(pictures, 64)
    assert train_djepa.load_held_out(held_out, data, options).labels.tolist() == [1]
    (held_out / "dog").rename(held_out / "emu")
    with pytest.raises(SystemExit, match="holds the class emu, which --data does not"):
        train_djepa.load_held_out(held_out, data, options)


def test_images_go_through_a_tokenizer(tmp_path, pictures):
    tensors = {name: value for name, value in Tokenizer().state_dict().items() if value.is_floating_point()}
    save_file(tensors, tmp_path / "tokenizer.safetensors")
    words = ("--data", pictures, "--tokenizer", tmp_path / "tokenizer.safetensors", "--out", tmp_path / "run")
    with pytest.raises(SystemExit, match="--image-size 20 must be a multiple of 8"):
        train(*words, "--steps", 2, "--image-size", 20)
    train(*words, "--steps", 2, "--image-size", 32, "--held-out", pictures)
    loaded = load_djepa(tmp_path / "run" / "djepa.safetensors")
    assert loaded.tokenizer is not None
    assert loaded.model.config.side == 4


def test_without_the_jepa_loss_the_projection_stays(tmp_path, latents):
    train(
        "--data", latents, "--out", tmp_path / "run", "--steps", 2, "--jepa-weight", 0, "--latent-scale", 0.25
    )
    assert load_djepa(tmp_path / "run" / "djepa.safetensors").latent_scale == 0.25
    rows = json.loads((tmp_path / "run" / "loss.json").read_text())["rows"]
    assert rows[-1]["jepa"] == 0


def test_broken_images_are_named_before_training(tmp_path, pictures):
    (pictures / "cat" / "1.png").write_bytes((pictures / "cat" / "1.png").read_bytes()[:60])
    (pictures / "dog" / "note.jpg").write_text("not an image")
    with pytest.raises(SystemExit) as refusal:
        train("--data", pictures, "--out", tmp_path / "run", "--steps", 2)
    message = str(refusal.value)
    assert "2 of 7 images cannot be read" in message
    assert "1.png" in message
    assert "note.jpg" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"latents": torch.zeros(2, 16, 4, 4)}, "holds no labels"),
        ({"latents": torch.zeros(2, 16, 4, 5), "labels": torch.zeros(2)}, r"must be \(rows, C, S, S\)"),
        ({"latents": torch.zeros(2, 16, 4, 4), "labels": torch.zeros(3)}, "got 3 labels"),
        ({"latents": torch.full((2, 16, 4, 4), torch.nan), "labels": torch.zeros(2)}, "not finite"),
        ({"latents": torch.zeros(2, 16, 4, 4), "labels": torch.tensor([0, -1])}, "labels must be from 0"),
    ],
)
def test_latents_that_cannot_be_used_are_refused(tmp_path, tensors, message):
    save_file(tensors, tmp_path / "odd.safetensors")
    with pytest.raises(SystemExit, match=message):
        train("--data", tmp_path / "odd.safetensors", "--out", tmp_path / "run", "--steps", 2)


def test_other_inputs_that_cannot_be_used_are_refused(tmp_path, latents):
    with pytest.raises(SystemExit, match="does not exist"):
        train("--data", tmp_path / "nowhere", "--out", tmp_path / "run", "--steps", 2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="holds no images"):
        train("--data", tmp_path / "empty", "--out", tmp_path / "run", "--steps", 2)
    with pytest.raises(SystemExit, match="side 4 is not a multiple of patch 3"):
        train("--data", latents, "--out", tmp_path / "run", "--steps", 2, "--patch", 3)
    (tmp_path / "note.safetensors").write_text("no tokenizer")
    with pytest.raises(SystemExit, match=r"--tokenizer .*damaged"):
        train(
            "--data",
            latents,
            "--out",
            tmp_path / "run",
            "--steps",
            2,
            "--tokenizer",
            tmp_path / "note.safetensors",
        )
    assert not (tmp_path / "run").exists()
    train("--data", latents, "--out", tmp_path / "run", "--steps", 2)
    with pytest.raises(SystemExit, match="is of another model"):
        train("--data", latents, "--out", tmp_path / "run", "--steps", 2, "--denoiser", "flow")


@pytest.mark.long
def test_two_processes_train_one_model(tmp_path, latents):
    words = ["--data", str(latents), "--out", str(tmp_path / "run"), "--steps", "3", *SMALL]
    # accelerate's own launcher starts several processes on accelerators alone; what it sets is the same
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launch, str(ROOT / "research" / "training" / "djepa" / "train.py"), *words],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        cwd=tmp_path,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((tmp_path / "run" / "loss.json").read_text())
    assert record["settings"]["processes"] == 2
    assert record["rows"][-1]["step"] == 3
    load_djepa(tmp_path / "run" / "djepa.safetensors")
