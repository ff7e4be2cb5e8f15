"""The picture of the templates is offered once, and nothing fails where it cannot be."""

from __future__ import annotations

import folder_paths
from jepa_guidance.host.comfy.example_picture import PICTURE, offer_picture


def test_the_picture_is_put_into_the_input_folder_unless_it_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path))
    offer_picture()
    assert (tmp_path / PICTURE.name).read_bytes() == PICTURE.read_bytes()
    (tmp_path / PICTURE.name).write_bytes(b"the user's")
    offer_picture()
    assert (tmp_path / PICTURE.name).read_bytes() == b"the user's"


def test_an_input_folder_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    file = tmp_path / "input"
    file.write_text("no folder")
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(file))
    offer_picture()
    assert file.read_text() == "no folder"
