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
from safetensors.torch import load_file

from jepa_core.djepa import Tokenizer, load_tokenizer
from research.costs import device, djepa, gradient, guides, memory, score, step
from research.harness.networks import Networks
from research.harness.pack_api import demo
from research.harness.pictures import photos
from research.judges import comparison
from research.judges import train as judges
from research.judges.classifier import Classifier, load_classifier
from research.judges.measures import load_bank
from research.training import tokenizer
from research.training.generator import compare as compare_generators
from research.training.generator import train as generator
from research.training.loop import Training
from research.training.pictures import Pictures
from research.world import labels
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


@pytest.mark.long
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
    step.main(words("--pixels", "64", "--steps", "2", "--arms", "unguided", "subtle"))
    assert figures(tmp_path)["arms"]["subtle"]["over_unguided"] > 0
    assert figures(tmp_path)["settings"]["command"].endswith("--arms unguided subtle --steps 2 --pixels 64")


@pytest.mark.long
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


@pytest.mark.long
def test_cuda(
    small_encoder: Path, tmp_path: Path, networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "random_networks", lambda *_: networks)
    monkeypatch.setattr(device, "peak_memory", lambda run: {"above_weights_GiB": 0.0})
    monkeypatch.setattr(device, "SIZES", {"tiny": device.SD15._replace(pixels=64)})
    monkeypatch.setattr(device, "PRESETS", ("subtle",))
    monkeypatch.setattr(device, "SIDE", 28)
    records: list[dict[str, Any]] = []
    device.everything(small_encoder, tmp_path, 2, 2, records.append)
    assert "subtle" in device.table(records[-1])
    assert records[-1]["promises"]["tiny"]["an unguided run repeats bit for bit"]


def pictures(_: Path, training: int = 28, held_out: int = 14, **__: Any) -> Pictures:
    """Noise in place of the world's pictures, with its labels."""
    rows = labels.draw(7, min(training, 28) + min(held_out, 14))
    count = len(rows.classes)
    images = torch.randint(
        0, 256, (count, 3, 128, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    unseen = torch.arange(count) >= min(training, 28)
    return Pictures(images, rows.classes, unseen, labels.CLASSES, "none", rows.attributes, labels.NAMES)


@pytest.fixture
def latents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tokenizer and latents."""
    monkeypatch.setattr(tokenizer, "load_pictures", pictures)
    tokenizer.main(["--folder", str(tmp_path), "--steps", "2", "--batch", "2"])
    return tmp_path


def test_the_tokenizer_is_trained_and_encodes_the_world(latents: Path) -> None:
    trained = load_tokenizer(latents / "tokenizer.safetensors")
    file = load_file(latents / "held_out.safetensors")
    world = pictures(latents).unseen()
    with torch.no_grad():
        expected = trained.encode(world.pixels() * 2 - 1)
    torch.testing.assert_close(file["latents"].float(), expected, atol=2e-3, rtol=2e-3)
    assert torch.equal(file["labels"] + 1, world.labels)


KINDS = [
    ("latents", "v"),
    *(pytest.param(*kind, marks=pytest.mark.long) for kind in (("latents", "flow"), ("pixels", "v"))),
]


@pytest.mark.parametrize(("space", "prediction"), KINDS)
def test_the_generator_is_trained_and_resumed(
    latents: Path, space: str, prediction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generator, "load_pictures", pictures)
    monkeypatch.setattr(generator, "samples", partial(generator.samples, steps=1))
    monkeypatch.setitem(generator.UNET, "model_channels", 32)  # a third
    common = ["--folder", str(latents), "--name", "run", "--space", space, "--prediction", prediction]
    generator.main([*common, "--batch", "2", "--steps", "1"])
    generator.main([*common, "--batch", "2", "--steps", "2"])
    run = latents / "run"
    assert [row["step"] for row in json.loads((run / "loss.json").read_text())["rows"]] == [1, 2]
    assert (run / "samples-000002.png").stat().st_size > 1000
    made = run / demo.WEIGHTS.name
    assert made.exists() == (space == "latents")
    if made.exists():
        monkeypatch.setattr(demo, "WEIGHTS", made)
        model, _ = demo.load_demo_generator()
        average = torch.load(run / "checkpoint.pt", weights_only=True)["average"]
        for name, weight in model.model.diffusion_model.state_dict().items():
            torch.testing.assert_close(weight, average[f"unet.{name}"], atol=1e-3, rtol=1e-3)
    other = [*common, "--batch", "2", "--steps", "3", "--prediction", "flow" if prediction == "v" else "v"]
    with pytest.raises(SystemExit, match="of another model"):
        generator.main(other)


@pytest.mark.long
def test_generators_are_compared(latents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (generator, compare_generators):
        monkeypatch.setattr(module, "load_pictures", pictures)
        monkeypatch.setattr(module, "samples", partial(generator.samples, steps=1))
    monkeypatch.setattr(comparison, "EfficientNetLite0", lambda _: Brightness())
    monkeypatch.setattr(comparison, "frechet_distance", lambda a, b, _: float((a.mean(0) - b.mean(0)).norm()))
    monkeypatch.setattr(comparison, "load_classifier", lambda: Classifier().eval())
    for module in (comparison, compare_generators):
        monkeypatch.setattr(module, "REAL", 8)
    generator.main(["--folder", str(latents), "--name", "run", "--batch", "2", "--steps", "2"])
    out = latents / "figures.json"
    words = ["--folder", str(latents), "--out", str(out), "--each", "1"]
    compare_generators.main([*words, "--runs", "run", "run@1"])
    rows = json.loads(out.read_text())["rows"]
    assert list(rows) == ["real", "tokenizer", "run", "run@1"]
    assert rows["run"]["images"] == len(labels.CLASSES)
    assert rows["run@1"]["cfg"] == 1
    assert rows["run"]["copy_median"] > 0
    (latents / "tokenizer.safetensors").write_bytes((latents / "run" / demo.WEIGHTS.name).read_bytes())
    monkeypatch.setattr(compare_generators, "load_tokenizer", lambda _: Tokenizer().eval())
    compare_generators.main(words)
    assert list(json.loads(out.read_text())["rows"]) == [
        "real",
        "tokenizer",
    ]  # the others were of another tokenizer


@pytest.mark.long
def test_a_generator_that_was_interrupted_learns_the_same(
    latents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generator, "samples", partial(generator.samples, steps=1))
    common = ["--folder", str(latents), "--batch", "2", "--steps", "4", "--report-every", "2"]
    generator.main([*common, "--name", "whole"])
    advance = Training.advance

    def interrupted(training: Training, *arguments: Any) -> None:
        if training.step == 3:
            raise KeyboardInterrupt
        advance(training, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "advance", interrupted)
        with pytest.raises(KeyboardInterrupt):
            generator.main([*common, "--name", "parts"])
    generator.main([*common, "--name", "parts"])
    whole, parts = (
        torch.load(latents / name / "checkpoint.pt", weights_only=True) for name in ("whole", "parts")
    )
    for part in ("model", "average"):
        assert all(torch.equal(weight, parts[part][name]) for name, weight in whole[part].items())
    assert (parts["step"], len(parts["rows"])) == (4, 2)
    assert parts["seconds"] > 0


class Brightness:
    """Stands for a network that has to be fetched."""

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.mean((2, 3))


def test_the_judges_are_trained(small_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judges.data, "load_pictures", pictures)
    rare = pictures(tmp_path)
    monkeypatch.setattr(judges, "rarest", lambda _: (rare.trained_on(), rare.unseen()))
    monkeypatch.setattr(judges, "BANK_ROWS", {"training": 6, "held_out": 4})
    words = ["--folder", str(tmp_path), "--encoder", str(small_encoder), "--export", str(tmp_path)]
    judges.main([*words, "--steps", "3", "--batch", "2"])
    judges.main([*words, "--steps", "5", "--batch", "2"])
    found = json.loads((tmp_path / "classifier.json").read_text())["accuracy"]
    assert (found["held_out"]["images"], found["rarest"]["images"]) == (14, 14)
    monkeypatch.setattr("research.judges.measures.BANK", tmp_path / "bank.safetensors")
    bank = load_bank()
    trained = load_classifier(tmp_path / "classifier128.safetensors")
    world = pictures(tmp_path)
    real = torch.cat([world.trained_on().pixels()[:6], world.unseen().pixels()[:4]])
    with torch.no_grad():
        torch.testing.assert_close(bank.classifier, trained.features(real), atol=2e-3, rtol=2e-3)
    assert bank.held_out.tolist() == [False] * 6 + [True] * 4
    assert bank.encoder_name.startswith(small_encoder.name)


def test_no_program_hides_a_library() -> None:
    """dev.py appends a program's folder to sys.path, where a file would win over a namespace package such as cuda."""
    files = [file for file in (ROOT / "research").rglob("*.py") if file.parent.name != "harness"]
    assert [file for file in files if PathFinder.find_spec(file.stem, sys.path)] == []
