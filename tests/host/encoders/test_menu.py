"""The menu of encoders: what is here comes first, and names do not depend on what is here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import folder_paths
import pytest
import torch
from jepa_guidance.host.encoders import menu
from jepa_guidance.jepa_core.hub import ENCODERS, EncoderDownloadError
from jepa_guidance.nodes.encoder_loader import JEPAEncoderLoader
from jepa_guidance.nodes.prompt_fit import JEPAPromptFit
from safetensors.torch import save_file

PAPER = "dinov2-with-registers-small"


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty models/jepa."""
    folder = tmp_path / "models" / "jepa"
    folder.mkdir(parents=True)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "jepa", ([str(folder)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return folder


def put(models: Path, *names: str) -> None:
    """Put weights into models/jepa: a name of the hub as the download does, else a file."""
    for name in names:
        file = models / name / "model.safetensors" if name in ENCODERS else models / name
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"x": torch.zeros(1)}, file)
    folder_paths.filename_list_cache.clear()


def facts_of(node: type, name: str) -> dict:
    """What object_info tells the page of a menu."""
    (combo,) = [entry for entry in node.define_schema().inputs if entry.id == name]
    assert list(combo.as_dict()[menu.FACTS]) == combo.options
    found: dict = combo.as_dict()[menu.FACTS]
    return found


def test_installed_encoders_come_first_and_no_name_changes(models):
    before = menu.encoder_names()
    assert before == list(ENCODERS)
    put(models, "siglip2-base-patch16-224", "mine.safetensors", "dinov2-base")
    after = menu.encoder_names()
    assert after[:3] == ["dinov2-base", "siglip2-base-patch16-224", "mine.safetensors"]
    assert sorted(after) == sorted([*before, "mine.safetensors"])
    assert after[3:] == [name for name in before if name not in after[:3]]


def test_the_page_learns_what_is_here_what_is_downloaded_and_what_is_restricted(models):
    put(models, "mine.safetensors", "ijepa_vith14_1k")
    facts = facts_of(JEPAEncoderLoader, "encoder")
    assert facts["mine.safetensors"] == {"installed": True}
    assert facts["ijepa_vith14_1k"] == {
        "installed": True, "megabytes": 2523, "gated": False, "commercial": False,
    }  # fmt: skip
    assert facts[PAPER] == {"installed": False, "megabytes": 88, "gated": False, "commercial": True}
    for name, source in ENCODERS.items():
        assert (facts[name]["gated"], facts[name]["commercial"]) == (source.gated, source.commercial)
    assert facts_of(JEPAPromptFit, "model")["clip-vit-large-patch14"]["megabytes"] == 1710


@pytest.mark.parametrize(
    ("here", "advice"),
    [
        ((), "or choose one of dinov2-small, dinov2-base"),
        (("mine.safetensors",), "or choose mine.safetensors, which is installed"),
        (("mine.safetensors", "dinov2-base"), "or choose dinov2-base, which is installed"),
        (("dinov2-base", PAPER), f"or choose {PAPER}, which is installed"),
    ],
)
def test_a_name_that_is_not_here_is_refused_before_the_run_with_one_that_is(models, here, advice):
    put(models, *here)
    said = JEPAEncoderLoader.validate_inputs(encoder="theirs/model.safetensors")
    assert said.startswith("There is no encoder 'theirs/model.safetensors' here; put its .safetensors file")
    assert advice in said
    with pytest.raises(ValueError, match="There is no encoder"):
        menu.encoder_file("theirs/model.safetensors")


def test_every_name_of_the_menu_is_accepted_and_so_is_a_link(models):
    put(models, "mine.safetensors")
    assert all(JEPAEncoderLoader.validate_inputs(encoder=name) is True for name in menu.encoder_names())
    assert JEPAEncoderLoader.validate_inputs() is True


def test_an_encoder_that_can_be_downloaded_is_never_replaced(models, monkeypatch):
    put(models, "mine.safetensors")
    asked = []
    monkeypatch.setattr(menu, "fetch_encoder", lambda name, folder, **_: asked.append((name, folder)))
    assert menu.encoder_file("dinov2-large") == models / "dinov2-large" / "model.safetensors"
    assert asked == [("dinov2-large", models)]


@pytest.mark.parametrize(
    ("here", "said"),
    [
        ((), "cannot download"),
        (("mine.safetensors",), "choose mine.safetensors, which is installed; cannot download"),
        (("mine.safetensors", PAPER), f"choose {PAPER}, which is installed; cannot download"),
    ],
)
def test_a_failed_download_first_names_an_encoder_that_is_here(models, monkeypatch, here, said):
    def refuse(name: str, folder: Path, **_: object) -> None:
        raise EncoderDownloadError(f"cannot download {name}")

    put(models, *here)
    monkeypatch.setattr(menu, "fetch_encoder", refuse)
    with pytest.raises(EncoderDownloadError, match=f"^{said} dinov2-large$"):
        menu.encoder_file("dinov2-large")
    # what is not a CLIP is no advice for one
    with pytest.raises(EncoderDownloadError, match=r"^cannot download .*, together with"):
        menu.clip_file("CLIP-ViT-B-32-laion2B-s34B-b79K")


@pytest.mark.parametrize("node", [JEPAEncoderLoader, JEPAPromptFit])
def test_the_tooltip_of_a_menu_is_short(models, node):
    (combo,) = [entry for entry in node.define_schema().inputs if entry.id in ("encoder", "model")]
    assert len(combo.tooltip) < 260
