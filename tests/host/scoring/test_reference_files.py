"""JEPASaveReference, JEPALoadReference and JEPACombineReferences: files stay in models/jepa_references."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from jepa_guidance.host.comfy.model_folders import REFERENCE_FOLDER, register_folders
from jepa_guidance.jepa_core.reference import Reference, ReferenceFileError, ReferencePart
from jepa_guidance.nodes.combine_references import JEPACombineReferences
from jepa_guidance.nodes.reference_files import JEPALoadReference, JEPASaveReference

from tests.host.scoring.test_references import HOW

SCORES = torch.arange(4.0, dtype=torch.float64)


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """models/jepa_references in a host whose models are in a new folder."""
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {})
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    register_folders()
    folder = tmp_path / "models" / REFERENCE_FOLDER
    folder.mkdir(parents=True)  # tests put files there by hand
    return folder


def reference_of(seed: int = 0, size: int = 28) -> Reference:
    points = torch.randn(4, 16, generator=torch.Generator().manual_seed(seed))
    return Reference((ReferencePart("tiny", "x", size, points, points + 1, SCORES),), HOW)


def save(name: Any, seed: int = 0, *, overwrite: bool = False) -> str:
    return JEPASaveReference.execute(reference_of(seed), name, overwrite).args[0]


def load(name: Any) -> Reference:
    with torch.inference_mode():
        return JEPALoadReference.execute(name).args[0]


def test_a_saved_reference_is_in_the_menu_and_comes_back(models):
    assert save("usual") == "usual.safetensors"
    assert [file.name for file in models.iterdir()] == ["usual.safetensors"]
    assert "usual.safetensors" in JEPALoadReference.define_schema().inputs[0].options
    assert torch.equal(load("usual.safetensors").parts[0].embeddings, reference_of().parts[0].embeddings)


def test_a_file_of_the_same_name_is_kept_unless_told(models):
    before = JEPALoadReference.fingerprint_inputs(save("usual"))
    assert save("usual.safetensors", 1) == "usual_2.safetensors"
    assert save(" usual ", 2) == "usual_3.safetensors"
    assert JEPALoadReference.fingerprint_inputs("usual.safetensors") == before
    assert save("usual", 3, overwrite=True) == "usual.safetensors"
    assert torch.equal(load("usual.safetensors").parts[0].embeddings, reference_of(3).parts[0].embeddings)
    assert JEPALoadReference.fingerprint_inputs("usual.safetensors") != before
    assert len(list(models.iterdir())) == 3


@pytest.mark.parametrize(
    "name",
    ["", " ", ".", "..", "../x", "a/b", "a\\b", "/etc/x", "C:x", "a\0b", "a\nb", ".hidden", "con", "NUL.txt", "com1",
     "\u0301a", "a*", "a?", "<a>", "a|b", "~", "a.", "\u202ea", ".safetensors", "-rf"],
)  # fmt: skip
def test_names_that_are_not_those_of_plain_files_are_refused(models, name):
    with pytest.raises(ValueError, match="filename"):
        save(name)
    assert list(models.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    ["my cats 2", "a.b", "\u732b", "x" * 100, "1 + 1", "a_(1)", "v1.0, new", "my friend's", "my friend\u2019s",
     "\u0939\u093f\u0928\u094d\u0926\u0940", "\u0e44\u0e17\u0e22\u0e48", "\u732b" * 66],
)  # fmt: skip
def test_other_names_are_fine(models, name):
    assert save(name) == f"{name}.safetensors"
    assert load(save(name)).how == HOW
    assert [file.name for file in models.iterdir() if "_2" in file.name] == [f"{name}_2.safetensors"]


def test_a_name_is_one_file_however_it_is_written(models):
    assert save("re\u0301fe\u0301rence") == "r\u00e9f\u00e9rence.safetensors"
    assert save("r\u00e9f\u00e9rence", overwrite=True) == "r\u00e9f\u00e9rence.safetensors"
    assert save("usual.SAFETENSORS") == save("usual .Safetensors", overwrite=True) == "usual.safetensors"
    assert len(list(models.iterdir())) == 2


@pytest.mark.parametrize("name", ["x" * 101, "\u732b" * 67, "\u732b" * 100, "\u00e9" * 101])
def test_a_name_that_no_file_system_takes_is_refused_as_too_long(models, name):
    with pytest.raises(
        ValueError, match=r"filename .* is too long; shorten it to 100 letters, or 66 of Chinese"
    ):
        save(name)


@pytest.mark.parametrize("name", [None, 3, ["x"], {}])
def test_what_is_not_a_name_is_refused(models, name):
    with pytest.raises(ValueError, match="filename must be text"):
        save(name)
    with pytest.raises(ValueError, match="file must be a name"):
        load(name)


def test_only_names_in_the_menu_are_read(models):
    save("usual")
    (models.parent / "secret.safetensors").write_bytes((models / "usual.safetensors").read_bytes())
    for name in ("../secret.safetensors", str(models / "usual.safetensors"), "none.safetensors", "", "usual"):
        with pytest.raises(ValueError, match="There is no reference"):
            load(name)
        assert JEPALoadReference.fingerprint_inputs(name) == ""
    assert JEPALoadReference.fingerprint_inputs(None) != JEPALoadReference.fingerprint_inputs(None)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")
def test_links_out_of_the_folder_are_neither_read_nor_written(models):
    outside = models.parent / "outside.safetensors"
    outside.write_bytes(b"precious")
    (models / "link.safetensors").symlink_to(outside)
    with pytest.raises(ValueError, match="leads out of the model folders"):
        load("link.safetensors")
    with pytest.raises(ValueError, match="leads out of the model folders"):
        save("link", overwrite=True)
    assert outside.read_bytes() == b"precious"


def test_a_damaged_file_is_named(models):
    (models / "bad.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ReferenceFileError, match=r"bad\.safetensors is damaged"):
        load("bad.safetensors")


def test_what_is_not_a_reference_is_not_saved(models):
    with pytest.raises(ValueError, match="reference must be of type JEPA_REFERENCE, got str"):
        JEPASaveReference.execute("text", "usual", False)


# --- combining ----------------------------------------------------------------------------------------------------


def combine(*references: Any, keep: Any = 0, keep_seed: int = 0) -> Reference:
    named = {f"reference_{slot}": one for slot, one in enumerate(references, 1)}
    return JEPACombineReferences.execute(keep=keep, keep_seed=keep_seed, **named).args[0]


def test_references_are_put_together_and_thinned():
    first, second, third = (reference_of(seed) for seed in range(3))
    both = combine(first, second, None, third)
    expected = torch.cat([one.parts[0].embeddings for one in (first, second, third)])
    assert torch.equal(both.parts[0].embeddings, expected)
    few = combine(first, second, keep=3, keep_seed=7)
    assert len(few) == 3
    assert torch.equal(few.parts[0].embeddings, combine(first, second).thinned(3, 7).parts[0].embeddings)
    assert len(combine(first, second, keep=100)) == 8


@pytest.mark.parametrize(
    ("others", "more", "message"),
    [
        (
            (reference_of(), None, reference_of(size=42)),
            {},
            "reference_4 was made with tiny at 42 px, reference_1",
        ),
        ((None,), {}, "reference_2 must be of type JEPA_REFERENCE, got NoneType"),
        (("text",), {}, "reference_2 must be of type JEPA_REFERENCE, got str"),
        ((reference_of(),), {"keep": -1}, "keep -1 is outside"),
        ((reference_of(),), {"keep": 1.5}, "keep must be a whole number"),
        ((reference_of(),), {"keep_seed": 2**64}, "keep_seed 18446744073709551616 is outside"),
    ],
)
def test_what_does_not_fit_is_refused(others, more, message):
    with pytest.raises(ValueError, match=message):
        combine(reference_of(), *others, **more)
