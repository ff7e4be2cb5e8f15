"""Which files are found: all pictures in folders of any depth, and nothing outside of them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from jepa_core.folders.listing import find_pictures, path_of_text, text_of_path

linux = pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes, links and pipes")


def touch(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")


def test_pictures_are_found_at_any_depth_and_sorted(tmp_path):
    touch(
        *(
            tmp_path / name
            for name in ("b.PNG", "a/z.jpeg", "a/b/c/d.webp", "a.tiff", "notes.txt", "png", "c.gif")
        )
    )
    expected = ["a.tiff", "a/b/c/d.webp", "a/z.jpeg", "b.PNG", "c.gif"]
    found = find_pictures([tmp_path])
    assert [Path(path).relative_to(tmp_path).as_posix() for path in found] == expected
    assert found == sorted(found)


def test_hidden_and_technical_folders_and_files_are_left_out(tmp_path):
    hidden = (
        ".git/a.png",
        ".ipynb_checkpoints/a.png",
        "__MACOSX/a.png",
        "a/__pycache__/a.png",
        "._a.png",
        "@eaDir/a.png",
    )
    touch(*(tmp_path / name for name in (*hidden, "good/a.png")))
    assert find_pictures([tmp_path]) == [str(tmp_path / "good" / "a.png")]
    # what is named itself counts
    assert find_pictures([tmp_path / ".git"]) == [str(tmp_path / ".git" / "a.png")]


def test_each_file_is_found_once_and_a_named_file_whatever_its_name(tmp_path, monkeypatch):
    touch(tmp_path / "a" / "b.png", tmp_path / "c")
    monkeypatch.chdir(tmp_path)
    paths = ["a", tmp_path, "a/../a/b.png", "./a/", "c"]
    assert find_pictures(paths) == [str(tmp_path / "a" / "b.png"), str(tmp_path / "c")]


@linux
def test_links_out_of_the_folder_are_not_followed(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    touch(inside / "a.png", inside / "deep" / "b.png", outside / "secret.png")
    (inside / "file.png").symlink_to(outside / "secret.png")
    (inside / "up.png").symlink_to("../out/secret.png")
    (inside / "folder").symlink_to(outside)
    (inside / "loop").symlink_to(inside)
    (inside / "self.png").symlink_to(inside / "self.png")
    (inside / "none.png").symlink_to(inside / "nothing")
    (inside / "again.png").symlink_to(inside / "a.png")
    (inside / "directory.png").mkdir()
    os.mkfifo(inside / "pipe.png")
    found = [Path(path).relative_to(inside).as_posix() for path in find_pictures([inside])]
    assert found == ["a.png", "again.png", "deep/b.png"]
    # a link that the user names is what the user wants
    (tmp_path / "named").symlink_to(outside)
    assert find_pictures([tmp_path / "named"]) == [str(tmp_path / "named" / "secret.png")]


NAMES = (
    "\u6f22\u5b57.png",
    "\u0639\u0631\u0628\u064a.png",
    "\U0001f600 .png",
    "a\nb.png",
    "-o.png",
    "'; rm.png",
    "%2e%2e.png",
)


@linux
@pytest.mark.parametrize("name", NAMES)
def test_names_in_any_script(tmp_path, name):
    touch(tmp_path / name)
    (path,) = find_pictures([tmp_path])
    assert Path(path).name == name
    assert path_of_text(text_of_path(path)) == path


@linux
def test_names_that_are_no_text(tmp_path):
    name = os.fsdecode(b"caf\xe9 \xff.png")
    touch(tmp_path / name)
    (path,) = find_pictures([tmp_path])
    text = text_of_path(path)
    assert text.encode("utf-8").endswith(b"caf\\udce9 \\udcff.png")
    assert path_of_text(text) == path
    assert os.path.exists(path_of_text(text))


@pytest.mark.parametrize("path", ["none", "../none", "a\0b", "x" * 5000])
def test_a_path_that_is_not_there_is_named(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="does not exist; name a folder of pictures"):
        find_pictures([path])


@linux
def test_what_is_neither_file_nor_folder_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match="neither a file nor a folder"):
        find_pictures([tmp_path / "pipe.png"])
