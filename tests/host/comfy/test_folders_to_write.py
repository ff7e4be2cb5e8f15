"""Where files go, and what happens where they cannot."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import folder_paths
import pytest
import torch
from jepa_guidance.host.comfy.model_folders import folder_to_write, register_folders
from jepa_guidance.host.encoders.menu import clip_file, encoder_file, encoder_names
from jepa_guidance.host.generators.djepa_menu import djepa_names
from jepa_guidance.host.scoring.reference_files import reference_names, save_named
from jepa_guidance.jepa_core import hub
from jepa_guidance.jepa_core.djepa import files as djepa_files
from jepa_guidance.jepa_core.reference import Reference, ReferencePart
from jepa_guidance.jepa_core.writing import UnwritableError, is_unwritable, writing_into
from jepa_guidance.nodes import JEPAExtension
from safetensors import SafetensorError

from tests.conftest import HOST, ROOT
from tests.core.conftest import CLIP_TOKENIZER, random_djepa, save_clip
from tests.host.scoring.test_references import HOW
from tests.own_loop import finished

KINDS = ("jepa", "djepa", "jepa_references")
DINO, CLIP = "dinov2-small", "CLIP-ViT-B-32-laion2B-s34B-b79K"
NOBODY = 65534


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The models of a host that has none yet, in a folder that every user can see."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        monkeypatch.setattr(folder_paths, "models_dir", str(Path(folder) / "models"))
        monkeypatch.setattr(folder_paths, "folder_names_and_paths", {})
        monkeypatch.setattr(folder_paths, "filename_list_cache", {})
        (Path(folder) / "models").mkdir()
        yield Path(folder)


@contextmanager
def without_rights(folder: Path, rights: int = 0o555) -> Iterator[None]:
    """Within the block, this process has only these rights to the folder, to read it; if it is root's, as another user."""
    mode = folder.stat().st_mode
    folder.chmod(rights)
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(NOBODY)
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(mode)


def reference() -> Reference:
    points = torch.zeros(4, 16)
    return Reference(
        (ReferencePart("tiny", "x", 28, points, points + 1, torch.zeros(4, dtype=torch.float64)),), HOW
    )


def save_reference() -> None:
    save_named(reference(), "usual", overwrite=False)


WRITERS: dict[str, tuple[str, Callable[[], object]]] = {
    "an encoder": ("jepa", lambda: encoder_file(DINO)),
    "a CLIP": ("jepa", lambda: clip_file(CLIP)),
    "a reference": ("jepa_references", save_reference),
}


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(hub, "get_hf_file_metadata", unreachable)


# --- nothing is written before it is needed ----------------------------------------------------------------------


LOAD = """
import asyncio, os, sys
sys.path.insert(0, sys.argv[1])
pack, sys.argv = sys.argv[2], ["main", "--cpu", "--base-directory", sys.argv[3]]
import comfy.options
comfy.options.enable_args_parsing()
import nodes
print("loaded", asyncio.run(nodes.load_custom_node(pack)))
"""


def test_loading_the_pack_makes_no_folder(base: Path) -> None:
    command = [sys.executable, "-B", "-P", "-c", LOAD, str(HOST), str(ROOT), str(base)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert "loaded True" in ended.stdout, ended.stderr
    assert list((base / "models").iterdir()) == []


def test_registering_makes_no_folder_and_menus_of_missing_folders_are_empty(base: Path) -> None:
    with without_rights(base / "models"):
        register_folders()
    assert not list((base / "models").iterdir())
    assert reference_names() == []
    assert [folder_to_write(kind) for kind in KINDS] == [base / "models" / kind for kind in KINDS]


def test_a_file_that_is_put_there_later_is_found(base: Path) -> None:
    register_folders()
    assert reference_names() == []
    save_reference()
    assert reference_names() == ["usual.safetensors"]


@pytest.mark.parametrize("kind", KINDS)
def test_menus_are_there_though_a_folder_cannot_be_opened(base: Path, kind: str) -> None:
    """As below a folder of another user, or on a drive that is gone."""
    (base / "theirs" / kind / DINO).mkdir(parents=True)
    (base / "theirs" / kind / DINO / "model.safetensors").touch()
    folder_paths.add_model_folder_path(kind, str(base / "theirs" / kind), is_default=True)
    register_folders()
    with without_rights(base / "theirs", 0o000):
        with pytest.raises(PermissionError):
            (base / "theirs" / kind / DINO / "model.safetensors").stat()
        for node in finished(JEPAExtension().get_node_list()):
            assert node.GET_SCHEMA()
            assert node.INPUT_TYPES()


# --- the folder that the user configured --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_what_another_pack_keeps_there_stays_in_its_menus_and_out_of_ours(base: Path, kind: str) -> None:
    folder_paths.add_model_folder_path(kind, str(base / "theirs"))
    folder_paths.folder_names_and_paths[kind][1].add(".pth")
    (base / "theirs").mkdir()
    for name in ("weights.pth", "weights.safetensors", "notes.txt"):
        (base / "theirs" / name).touch()
    register_folders()
    assert set(folder_paths.get_filename_list(kind)) == {"weights.pth", "weights.safetensors"}
    ours = {"jepa": encoder_names, "djepa": djepa_names, "jepa_references": reference_names}[kind]()
    assert "weights.safetensors" in ours
    assert "weights.pth" not in ours


@pytest.mark.parametrize("kind", KINDS)
def test_a_default_folder_of_the_users_configuration_is_where_files_go(base: Path, kind: str) -> None:
    folder_paths.add_model_folder_path(kind, str(base / "other"))
    folder_paths.add_model_folder_path(kind, str(base / "mine"), is_default=True)
    register_folders()
    assert folder_to_write(kind) == base / "mine"
    # also if it is configured later
    folder_paths.add_model_folder_path(kind, str(base / "late"), is_default=True)
    assert folder_to_write(kind) == base / "late"


def test_downloads_and_references_go_there(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in KINDS:
        folder_paths.add_model_folder_path(kind, str(base / "mine" / kind), is_default=True)
    register_folders()
    asked: list[Path] = []
    monkeypatch.setattr(
        "jepa_guidance.host.encoders.menu.fetch_encoder", lambda name, folder, **_: asked.append(folder)
    )
    assert encoder_file(DINO) == base / "mine" / "jepa" / DINO / "model.safetensors"
    assert asked == [base / "mine" / "jepa"]
    save_reference()
    assert [file.name for file in (base / "mine" / "jepa_references").iterdir()] == ["usual.safetensors"]


# --- where nothing can be written -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("exists", [False, True])
def test_without_rights_one_message_names_the_folder_and_the_fix(base, no_hub, kind, exists):
    name, write = WRITERS[kind]
    register_folders()
    folder = base / "models" / name
    if exists:
        folder.mkdir()
    with without_rights(folder if exists else base / "models"), pytest.raises(UnwritableError) as caught:
        write()
    message = str(caught.value)
    assert message.startswith("cannot write ")
    assert (
        f"into {folder} (Permission denied): allow this program to write there, or list another folder"
        in message
    )
    assert f"under '{name}' in extra_model_paths.yaml, with is_default: true" in message
    assert ".lock" not in message


def test_a_clip_without_its_tokenizer_where_nothing_can_be_written_says_what_helps(base, no_hub):
    register_folders()
    folder = save_clip(base / "models" / "jepa" / CLIP, tokenizer=False)
    with without_rights(folder.parent), pytest.raises(UnwritableError) as caught:
        clip_file(CLIP)
    message = str(caught.value)
    assert "allow this program to write there, or put merges.txt and vocab.json of laion/" in message
    assert message.endswith(f"into {folder} yourself")
    assert "is_default" not in message  # the weights would still be found here
    for name in ("merges.txt", "vocab.json"):
        shutil.copy(CLIP_TOKENIZER / name, folder)
    with without_rights(folder.parent):
        assert clip_file(CLIP) == folder / "model.safetensors"


def test_a_file_in_the_place_of_the_folder(base, no_hub):
    register_folders()
    (base / "models" / "jepa").write_text("")
    with pytest.raises(UnwritableError, match="remove the file that has the name of a folder"):
        encoder_file(DINO)


FULL = {
    "the system": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "safetensors": SafetensorError(
        "Error while serializing: I/O error: No space left on device (os error 28)"
    ),
}


@pytest.mark.parametrize("says", FULL)
def test_a_full_disk(base, monkeypatch, says):
    """It cannot be had in a test, so its errors are raised where files are written."""

    def full(*_: object, **__: object) -> None:
        raise FULL[says]

    register_folders()
    monkeypatch.setattr("jepa_guidance.jepa_core.reference.save_file", full)
    with pytest.raises(
        UnwritableError, match=r"the reference into .* \(No space left on device\): free some space"
    ):
        save_reference()
    assert list((base / "models" / "jepa_references").iterdir()) == []
    monkeypatch.setattr(djepa_files, "save_file", full)
    with pytest.raises(UnwritableError, match="the D-JEPA into"):
        djepa_files.save_djepa(base / "small.safetensors", random_djepa(), ["cat", "dog", "owl"])
    monkeypatch.setattr(hub, "get_hf_file_metadata", full)
    with pytest.raises(UnwritableError, match=r"dinov2-small \(88 MB\) into .*: free some space"):
        encoder_file(DINO)


def test_a_name_that_is_too_long(base):
    with pytest.raises(UnwritableError, match=r"\(File name too long\): use a shorter name"):
        djepa_files.save_djepa(base / ("x" * 300), random_djepa(), ["cat", "dog", "owl"])


def test_other_errors_keep_their_words(base, no_hub):
    register_folders()
    with pytest.raises(
        hub.EncoderDownloadError, match=r"no network.*Put config\.json and model\.safetensors"
    ):
        encoder_file(DINO)
    assert not is_unwritable(ConnectionRefusedError(errno.ECONNREFUSED, "refused"))
    with pytest.raises(FileNotFoundError), writing_into(base, "nothing"):
        (base / "none").read_bytes()
    shutil.rmtree(base / "models")
