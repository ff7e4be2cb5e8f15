"""The picture of the templates is offered once, and nothing fails where it cannot be."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import folder_paths
from jepa_guidance.host.comfy.example_picture import PICTURE, offer_picture


def test_the_picture_is_put_into_the_input_folder_unless_it_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path))
    offer_picture()
    assert (tmp_path / PICTURE.name).read_bytes() == PICTURE.read_bytes()
    (tmp_path / PICTURE.name).write_bytes(b"the user's")
    offer_picture()
    assert (tmp_path / PICTURE.name).read_bytes() == b"the user's"


def test_a_copy_that_is_cut_short_leaves_nothing(tmp_path, monkeypatch):
    def full(_, place):
        Path(place).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path))
    with monkeypatch.context() as short:
        short.setattr(shutil, "copyfile", full)
        offer_picture()
    assert list(tmp_path.iterdir()) == []
    offer_picture()
    assert [file.name for file in tmp_path.iterdir()] == [PICTURE.name]
    assert (tmp_path / PICTURE.name).read_bytes() == PICTURE.read_bytes()


def test_an_input_folder_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    file = tmp_path / "input"
    file.write_text("no folder")
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(file))
    offer_picture()
    assert file.read_text() == "no folder"
