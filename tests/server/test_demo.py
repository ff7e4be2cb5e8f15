"""The demo against a real server: every picture is made, judged, and on the sheet as soon as it is there."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from tools import demo
from tools.demo_sheet import Judge
from tools.server import Server


def test_each_picture_is_on_the_sheet_as_soon_as_it_is_made(
    server: Server, encoder_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sheet = tmp_path / "contact_sheet.png"
    monkeypatch.setattr(demo, "SHEET", sheet)
    judge, seen = Judge(), []

    def judged(picture: Image.Image, class_name: str) -> demo.Row:
        seen.append(sheet.read_bytes() if sheet.exists() else None)
        return judge(picture, class_name)

    options = argparse.Namespace(first=0, pictures=1, strengths=demo.STRENGTHS[-1:], encoder=encoder_dir)
    unguided, guided = demo.run(server, options, judged)
    assert seen[0] is None
    assert seen[1] not in (None, sheet.read_bytes())
    assert [unguided["strength"], guided["strength"]] == [0.0, demo.STRENGTHS[-1]]
    assert unguided["class"] == guided["class"] == "robot"
    assert unguided["recognised"]
    assert guided["score"] < unguided["score"]
    assert ImageChops.difference(unguided["picture"], guided["picture"]).getbbox() is not None
