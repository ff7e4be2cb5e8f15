"""The report's file: all that it shows is in it, no name gets out of its place, and pictures that are gone are named."""

from __future__ import annotations

import binascii
import io
import json
import re
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jepa_core.folders.collection import duplicates_of, folder_and_name, read_collection
from jepa_core.folders.report import SHOWN, thumbnail, write_report
from jepa_core.folders.table import Row, TableError, write_table
from tests.core.folders.synthetic import HOSTILE, SETTINGS, planted, synthetic_rows, write_synthetic


def report_of(table: Path, out: Path, **options: int) -> tuple[str, dict]:
    """Write a report; returns its text and the data in it."""
    collection = read_collection(table)
    write_report(out, table.name, collection, duplicates_of(table, collection, 0.02), 0.02, **options)
    text = out.read_text(encoding="utf-8")
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return text, json.loads(data)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict]:
    folder = tmp_path_factory.mktemp("report")
    write_synthetic(folder / "table.parquet", 1000, length=32)
    return report_of(folder / "table.parquet", folder / "report.html")


def test_the_data_is_that_of_the_table(made):
    _, data = made
    rows = list(synthetic_rows(1000, 32))
    assert [
        f"{data['folders'][folder]}/{name}"
        for folder, name in zip(data["folder"], data["names"], strict=True)
    ] == [row.path for row in rows]
    assert data["errors"] == {str(place): row.error for place, row in enumerate(rows) if row.error}
    for name in ("score", "novelty", "more_novel_than"):
        expected = [getattr(row, name) for row in rows]
        assert [value is None for value in data[name]] == [value is None for value in expected]
        known = [pair for pair in zip(data[name], expected, strict=True) if pair[1] is not None]
        assert all(one == pytest.approx(other, rel=1e-6) for one, other in known)
    scored = [place for place, row in enumerate(rows) if row.score is not None]
    by_score = sorted(scored, key=lambda place: rows[place].score)
    assert data["rarest"]["score"] == by_score[:SHOWN]
    assert data["typical"]["score"] == by_score[: -SHOWN - 1 : -1]
    by_novelty = sorted(scored, key=lambda place: -rows[place].novelty)
    assert data["rarest"]["novelty"] == by_novelty[:SHOWN]
    assert sorted(map(sorted, data["groups"])) == planted(1000)


def test_a_page_loads_nothing_and_runs_only_its_own_script(made):
    text, _ = made
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy.startswith("default-src 'none'; img-src data: file:; ")
    for kind, content in (
        ("style", re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]),
        ("script", re.findall(r"<script>(.*?)</script>", text, re.DOTALL)[0]),
    ):
        digest = binascii.b2a_base64(sha256(content.encode()).digest(), newline=False).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert not re.search(r'\b(src|href)="(?!#)', text)


def test_no_name_gets_out_of_the_data(made):
    text, data = made
    paths = "\n".join(
        f"{data['folders'][folder]}/{name}"
        for folder, name in zip(data["folder"], data["names"], strict=True)
    )
    assert all(name in paths for name in HOSTILE)
    raw = text.split('id="data">')[1].split("</script>")[0]
    assert "<" not in raw
    assert raw.isascii()
    for name in HOSTILE[:3]:
        assert name not in text


def test_a_title_is_text(tmp_path):
    table = tmp_path / "<b>{data}&.parquet"
    write_synthetic(table, 30, length=8)
    text, data = report_of(table, tmp_path / "report.html")
    assert "<title>&lt;b&gt;{data}&amp;.parquet</title>" in text
    assert data["title"] == table.name


def row_of(path: Path, place: int, **changes: object) -> Row:
    vector = np.eye(8, dtype=np.float32)[place % 8]
    row = Row(str(path), f"{place}", 8, 8, 9, float(place), vector, vector, None, None, 0, None)
    return row._replace(**changes)


def test_pictures_are_shown_in_small_and_missing_ones_named(tmp_path):
    for place, mode in enumerate(("RGB", "RGBA", "L", "P", "I;16", "CMYK")):
        Image.new(
            mode, (900, 300), 200 if mode in ("L", "P", "I;16") else "red" if mode != "CMYK" else (0, 9, 9, 0)
        ).save(tmp_path / f"{place}.{'tiff' if mode == 'CMYK' else 'png'}")
    (tmp_path / "6.png").write_bytes(b"no picture")
    files = [*sorted(tmp_path.iterdir()), tmp_path / "7.png"]
    write_table(
        tmp_path / "table.parquet", SETTINGS, 8, [row_of(file, place) for place, file in enumerate(files)]
    )
    _, data = report_of(tmp_path / "table.parquet", tmp_path / "report.html")
    assert data["missing"] == [6, 7]
    assert set(data["thumbnails"]) == set("012345")
    for text in data["thumbnails"].values():
        with Image.open(io.BytesIO(binascii.a2b_base64(text))) as small:
            assert small.size == (144, 48)


def test_a_photo_is_turned_as_it_says(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (600, 300)).save(tmp_path / "turned.jpg", exif=turned)
    with Image.open(io.BytesIO(binascii.a2b_base64(thumbnail(str(tmp_path / "turned.jpg"))))) as small:
        assert small.size == (72, 144)


def test_no_more_thumbnails_than_asked_for_and_the_rarest_first(tmp_path):
    for place in range(6):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{place}.png")
    rows = [row_of(tmp_path / f"{place}.png", place, score=float(-place)) for place in range(6)]
    write_table(tmp_path / "table.parquet", SETTINGS, 8, rows)
    _, data = report_of(tmp_path / "table.parquet", tmp_path / "report.html", thumbnails=2)
    assert set(data["thumbnails"]) == {"5", "4"}


def test_a_table_without_scores_has_duplicates(tmp_path):
    rows = [row_of(tmp_path / f"{place}.png", place, score=None) for place in range(9)]
    write_table(tmp_path / "table.parquet", SETTINGS, 8, rows)
    _, data = report_of(tmp_path / "table.parquet", tmp_path / "report.html")
    assert data["criteria"] == []
    assert data["groups"] == [[0, 8]]


@pytest.mark.parametrize("number", [np.nan, np.inf, 0.0])
def test_an_embedding_that_is_none_is_refused(tmp_path, number):
    rows = [
        row_of(tmp_path / "a.png", 0),
        row_of(tmp_path / "b.png", 1, embedding=np.full(8, number, np.float32)),
    ]
    write_table(tmp_path / "table.parquet", SETTINGS, 8, rows)
    with pytest.raises(TableError, match=r"table.parquet is damaged"):
        report_of(tmp_path / "table.parquet", tmp_path / "report.html")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/a/b/c.png", ("/a/b", "c.png")),
        ("/c.png", ("/", "c.png")),
        ("/a/b\\c.png", ("/a", "b\\c.png")),
        ("C:\\a\\c.png", ("C:\\a", "c.png")),
        ("\\\\host\\share\\a\\c.png", ("\\\\host\\share\\a", "c.png")),
        ("picture 3", (".", "picture 3")),
    ],
)
def test_folders_of_any_system(path, expected):
    assert folder_and_name(path) == expected
