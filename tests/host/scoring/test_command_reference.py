"""References and scores of the command line, in the graph beside those that were made there of the same pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
import pytest
import torch
from jepa_guidance.host.encoders.host_encoder import HostEncoder, load_host_encoder
from jepa_guidance.jepa_core.folders.commands import main
from jepa_guidance.jepa_core.folders.reading import read_picture
from jepa_guidance.jepa_core.folders.table import read_table
from jepa_guidance.jepa_core.reference import Reference, load_reference
from jepa_guidance.nodes.reference import JEPAReferenceNode
from jepa_guidance.nodes.reference_files import JEPALoadReference
from jepa_guidance.nodes.score_folder import JEPAScoreFolder
from jepa_guidance.nodes.score_image import JEPAScoreImage
from PIL import Image

from tests.core.conftest import random_model
from tests.host.scoring.test_reference_files import models  # noqa: F401 (a fixture)

SETTINGS = {"mode": "projected", "top_k": 2, "fit": "squash", "antialias": True}


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    random_model("dinov2", hidden_size=64).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of one size, so that the graph can have them as a batch."""
    generator = np.random.default_rng(0)
    for number in range(9):
        picture = generator.integers(0, 256, (40, 50, 3 + number % 2), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    return tmp_path


def used(encoder: HostEncoder, reference: Reference, images: torch.Tensor) -> tuple[Any, ...]:
    """What JEPA Score Image says of images beside a reference."""
    with torch.inference_mode():
        return JEPAScoreImage.execute(images, encoder, **SETTINGS, reference=reference).args


@pytest.mark.parametrize("way", ["folder", "table"])
@pytest.mark.parametrize("more", [{}, {"fit": "crop", "antialias": False, "mode": "exact"}])
def test_a_reference_of_the_command_gives_the_numbers_of_one_made_in_the_graph(
    encoder_folder, folder, way, more
):
    settings = SETTINGS | more
    encoder = load_host_encoder(encoder_folder, encoder_folder.name, 28)
    pictures = [read_picture(file)[None] for file in sorted(folder.glob("*.png"))]
    with torch.inference_mode():
        lists = {name: [value] for name, value in settings.items()}
        made, *_ = JEPAReferenceNode.execute(images=pictures, encoder=[encoder], **lists).args
    options = ["--encoder", encoder_folder, "--image-size", 28, "--fit", settings["fit"], "--device", "cpu"]
    options += [] if settings["antialias"] else ["--no-antialias"]
    options += ["--exact"] if settings["mode"] == "exact" else []
    file, table = folder / "r.safetensors", folder / "s.parquet"
    if way == "table":
        assert main([*map(str, ("score", folder, "--out", table, *options))]) == 0
        assert main([*map(str, ("reference", table, "--out", file))]) == 0
        assert read_table(table).numbers("score").tolist() == made.parts[0].scores.tolist()
    else:
        assert main([*map(str, ("reference", folder, "--out", file, *options))]) == 0
    found = load_reference(file)
    assert found.how == made.how
    assert found.label == made.label
    for name in ("fingerprint", "image_size"):
        assert getattr(found.parts[0], name) == getattr(made.parts[0], name)
    for name in ("embeddings", "smoothed", "scores"):
        assert torch.equal(getattr(found.parts[0], name), getattr(made.parts[0], name)), name
    images = torch.rand(3, 40, 50, 3, generator=torch.Generator().manual_seed(1))
    if not more:
        assert used(encoder, found, images) == used(encoder, made, images)


def test_a_reference_of_the_command_is_loaded_and_score_folder_gives_the_numbers_of_the_table(
    encoder_folder,
    folder,
    models,  # noqa: F811
    monkeypatch,
):
    table, name = folder / "s.parquet", "usual.safetensors"
    options = ["--encoder", encoder_folder, "--image-size", 28, "--device", "cpu"]
    assert main([*map(str, ("score", folder, "--out", table, *options))]) == 0
    assert main([*map(str, ("reference", table, "--out", models / name))]) == 0
    assert main([*map(str, ("score", folder, "--out", table, *options, "--reference", models / name))]) == 0
    monkeypatch.setattr(folder_paths, "output_directory", str(folder))
    monkeypatch.setattr(folder_paths, "user_directory", str(folder / "user"))
    inputs = {"folder": "output", "subfolder": "", "with_subfolders": True, "count": 2, **SETTINGS}
    inputs |= {"by": "novelty", "most_files": 100}
    with torch.inference_mode():
        (reference,) = JEPALoadReference.execute(name).args
        encoder = load_host_encoder(encoder_folder, encoder_folder.name, 28)
        found = JEPAScoreFolder.execute(encoder=encoder, reference=reference, **inputs).args
    rows = {row["file"]: row for row in json.loads(found[4])["pictures"]}
    made = read_table(table)
    names = [Path(path).name for path in made.data.column("path").to_pylist()]
    assert rows.keys() == set(names)
    for column in ("score", "novelty", "more_novel_than"):
        assert [rows[one][column] for one in names] == made.numbers(column).tolist(), column
    assert [rows[one]["hash"] for one in names] == made.data.column("hash").to_pylist()
