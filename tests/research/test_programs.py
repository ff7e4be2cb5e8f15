"""Every program runs to its end at a tiny size, and writes what it is for."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from functools import partial
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from research.costs import device, djepa, gradient, guides, memory, score, step
from research.harness.networks import Networks
from research.harness.pictures import photos
from research.judges import train as judges
from research.training.djepa import compare, make_latents
from research.training.djepa import train as train_djepa
from research.training.emoji import train as generator
from research.training.pictures import Pictures
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def small_encoder(save_model: Callable[..., Path]) -> Path:
    """A small random encoder, whose embedding is long enough for the projected score."""
    return save_model(hidden_size=64)


@pytest.fixture
def words(small_encoder: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """A command line with the small encoder, and the folder and the file of figures if they are wanted."""

    def line(*more: str, folder: bool = False, out: bool = True) -> list[str]:
        found = ["--encoder", str(small_encoder)]
        found += ["--folder", str(tmp_path)] if folder else []
        return [*found, *(["--out", str(tmp_path / "figures.json")] if out else []), *more]

    return line


@pytest.fixture
def networks() -> Networks:
    tiny: Any = importlib.import_module("tests.host.conftest")
    conditioning = tiny.tiny_conditioning(10), tiny.tiny_conditioning(11)
    return Networks(tiny.tiny_model(), tiny.tiny_vae(), tiny.tiny_encoder(), *conditioning)


def figures(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "figures.json").read_text())


def test_gradient(words: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient, "RUNS", ((20, (2,)),))
    focus = gradient.focus
    monkeypatch.setattr(gradient, "focus", lambda encoder: focus(encoder)[-2:])
    gradient.main(words(folder=True))
    found = figures(tmp_path)
    assert list(found["table"]) == ["s20", "focus", "all"]
    assert found["table"]["focus"]["cold, full precision (faithful)"]["cosine_worst"] > 0.99
    assert found["settings"]["command"].startswith(
        "python dev.py run research/costs/gradient.py --folder WORK"
    )


def test_score(words: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score, "pictures", lambda: dict(list(photos())[:3]))
    monkeypatch.setattr(score, "SIDES", (28, 14))
    monkeypatch.setattr(score, "OUTPUTS", 64)
    score.main(words(folder=True))
    score.main(words(folder=True))
    assert figures(tmp_path)["pictures"] == 3


def test_step(words: Callable, tmp_path: Path, networks: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "random_networks", lambda *_: networks)
    step.main(words("--pixels", "64", "--steps", "2", "--arms", "unguided", "balanced"))
    assert figures(tmp_path)["arms"]["balanced"]["over_unguided"] > 0
    assert figures(tmp_path)["settings"]["command"].endswith("--arms unguided balanced --steps 2 --pixels 64")


def test_memory(words: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = {
        name: case for name, case in memory.cases().items() if " at 224, " in name and "eager" not in name
    }
    monkeypatch.setattr(memory, "cases", lambda: cases)
    monkeypatch.setattr(memory, "processes", lambda folder: {})
    committed = json.loads((memory.program.FIGURES / "memory.json").read_text())["table"]
    memory.main(words())
    found = figures(tmp_path)["table"]
    assert {name: found[name] for name in cases} == {name: committed[name] for name in cases}


def test_guides(words: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guides, "ENCODERS", {"dinov2-small": guides.ENCODERS["dinov2-small"]})
    monkeypatch.setattr(guides, "SIDE", 28)
    guides.main(words())
    *_, ours = figures(tmp_path)["guides"].values()
    assert ours["seconds"]["exact"] > 0
    assert ours["scores"] is None


def test_djepa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(djepa, "measure", lambda *_: {"tokens_a_second": 2.0})
    monkeypatch.setattr(djepa, "counted", lambda size: {"size": size})
    djepa.main(["--out", str(tmp_path / "figures.json")])
    assert [row["batch"] for row in figures(tmp_path)["rows"]] == [1, 1, 8, 1]


def test_cuda(
    small_encoder: Path, tmp_path: Path, networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "random_networks", lambda *_: networks)
    monkeypatch.setattr(device, "peak_memory", lambda run: {"above_weights_GiB": 0.0})
    monkeypatch.setattr(device, "SIZES", {"tiny": device.SD15._replace(pixels=64)})
    monkeypatch.setattr(device, "PRESETS", ("balanced",))
    monkeypatch.setattr(device, "SIDE", 28)
    records: list[dict[str, Any]] = []
    device.everything(small_encoder, tmp_path, 2, 2, records.append)
    assert "balanced" in device.table(records[-1])
    assert records[-1]["promises"]["tiny"]["an unguided run repeats bit for bit"]


def pictures(_: Path) -> Pictures:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (42, 3, 128, 128), dtype=torch.uint8, generator=generator)
    labels, held_out = torch.arange(42) % 7 + 1, torch.arange(42) % 3 == 0
    return Pictures(images, labels, held_out, tuple("abcdefg"), "none")


def test_the_generator_is_trained_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "load_pictures", pictures)
    monkeypatch.setattr(generator, "sample", partial(generator.sample, steps=2))
    common = ["--folder", str(tmp_path), "--export", str(tmp_path), "--batch", "2"]
    generator.main([*common, "--steps", "5"])
    generator.main([*common, "--steps", "10"])
    rows = json.loads((tmp_path / "loss.json").read_text())["rows"]
    assert [row["step"] for row in rows] == [5, 10]
    with safe_open(tmp_path / "emoji64.safetensors", framework="pt") as content:
        assert json.loads(content.metadata()["classes"]) == ["any", *"abcdefg"]
    assert (tmp_path / "samples.png").stat().st_size > 1000


def test_the_judges_are_trained(small_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judges, "load_pictures", pictures)
    words = ["--folder", str(tmp_path), "--encoder", str(small_encoder), "--export", str(tmp_path)]
    judges.main([*words, "--steps", "30", "--batch", "2"])
    assert json.loads((tmp_path / "classifier.json").read_text())["images"] == {
        "trained_on": 28,
        "held_out": 14,
    }
    monkeypatch.setattr("research.judges.measures.HERE", tmp_path)
    bank = importlib.import_module("research.judges.measures").load_bank()
    assert bank.thumbnails.shape == (42, 3, 32, 32)
    expected = torch.nn.functional.adaptive_avg_pool2d(pictures(tmp_path).pixels(), 32)
    torch.testing.assert_close(bank.thumbnails, expected, atol=1 / 255, rtol=0)
    assert bank.encoder_name.startswith(small_encoder.name)


def test_a_djepa_is_trained_from_latents_and_compared(
    encoder_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (make_latents, compare):
        monkeypatch.setattr(module, "load_pictures", pictures)
    monkeypatch.setattr(generator, "sample", partial(generator.sample, steps=2))
    monkeypatch.setattr(compare, "STEPS", 2)
    monkeypatch.setattr(compare, "DENOISING_STEPS", 2)
    make_latents.main(["--folder", str(tmp_path), "--steps", "2", "--batch", "2", "--augmentations", "1"])
    sizes = ["--width", "16", "--depth", "1", "--heads", "2", "--head-width", "16", "--head-depth", "1"]
    sizes += ["--buffer", "2", "--batch", "4", "--steps", "2"]
    data = ["--data", str(tmp_path / "latents.safetensors"), "--out", str(tmp_path / "run")]
    train_djepa.main([*data, *sizes, "--sheet-steps", "2"])
    out = tmp_path / "figures.json"
    out.write_text('{"rows": {"real": {}}}')  # else other pictures than the bank's would be refused
    words = ["--folder", str(tmp_path), "--encoder", str(encoder_dir), "--times", "1", "--out", str(out)]
    compare.main([*words, "--unet", "run"])
    assert {"real", "unet", "run"} == set(figures(tmp_path)["rows"])
    assert (tmp_path / "run" / "sheet.png").stat().st_size > 1000


def test_no_program_hides_a_library() -> None:
    """dev.py appends a program's folder to sys.path, where a file would win over a namespace package such as cuda."""
    files = [file for file in (ROOT / "research").rglob("*.py") if file.parent.name != "harness"]
    assert [file for file in files if PathFinder.find_spec(file.stem, sys.path)] == []
