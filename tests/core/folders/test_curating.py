"""The commands report and select, as they are called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jepa_core.folders.commands import main
from tests.core.folders.synthetic import planted, synthetic_rows, write_synthetic

COUNT = 400


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("curating") / "table.parquet"
    write_synthetic(file, COUNT, length=16)
    return file


def test_report_writes_a_page(table, tmp_path, capsys):
    out = tmp_path / "report.html"
    assert main(["report", str(table), "--out", str(out)]) == 0
    assert out.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert f"{COUNT} pictures, {len(planted(COUNT))} groups" in capsys.readouterr().out


def test_select_lists_the_rarest_without_duplicates(table, tmp_path):
    out = tmp_path / "list.txt"
    assert (
        main(["select", str(table), "--keep", "10%", "--no-duplicates", "--by", "novelty", "--out", str(out)])
        == 0
    )
    # the second of a copy has more bytes or pixels; see synthetic_rows
    found = out.read_text(encoding="utf-8").splitlines()
    rows = sorted((row for row in synthetic_rows(COUNT, 16) if row.novelty), key=lambda row: -row.novelty)
    assert len(found) == (COUNT - len(planted(COUNT)) + 9) // 10
    place = {row.path: number for number, row in enumerate(rows)}
    assert [place[path] for path in found] == sorted(place[path] for path in found)
    assert place[found[-1]] < len(found) + len(planted(COUNT))


def test_select_links_files(tmp_path):
    from tests.core.folders.test_report import SETTINGS, row_of, write_table

    files = [tmp_path / "all" / f"{place}.png" for place in range(4)]
    files[0].parent.mkdir()
    for file in files:
        file.write_bytes(b"")
    write_table(
        tmp_path / "t.parquet", SETTINGS, 8, [row_of(file, place) for place, file in enumerate(files)]
    )
    assert main(["select", str(tmp_path / "t.parquet"), "--keep", "2", "--link", str(tmp_path / "some")]) == 0
    assert sorted(os.listdir(tmp_path / "some")) == ["0.png", "1.png"]
    assert os.path.samefile(tmp_path / "some" / "0.png", files[0])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["report", "{table}", "--out", "page.txt"], "--out page.txt: the name must end in .html"),
        (["report", "{no}", "--out", "page.html"], "TABLE {no}: "),
        (["select", "{no}", "--out", "list.txt"], "TABLE {no}: "),
        (["select", "{table}", "--out", "list.md"], "--out list.md: the name must end in .txt"),
        (["select", "{table}", "--link", "{table}"], "--link {table}: "),
        (["select", "{scoreless}", "--out", "list.txt"], "--by score: {scoreless} has none"),
        (["select", "{scoreless}", "--by", "novelty", "--out", "list.txt"], "score with --reference"),
    ],
)
def test_what_cannot_be_done_is_one_error(arguments, said, table, tmp_path, capsys, monkeypatch):
    from tests.core.folders.test_report import SETTINGS, row_of, write_table

    monkeypatch.chdir(tmp_path)
    here = Path(__file__)  # there, so that links could be made
    write_table(tmp_path / "s.parquet", SETTINGS, 8, [row_of(here, 0, score=None)])
    names = {
        "table": str(table),
        "no": str(tmp_path / "no.parquet"),
        "scoreless": str(tmp_path / "s.parquet"),
    }
    assert main([one.format(**names) for one in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said.format(**names) in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.parquet"]


@pytest.mark.parametrize(
    "option", ["--keep=0", "--keep=1.5", "--keep=many", "--cap-common=-1", "--distance=1", "--distance=nan"]
)
def test_a_number_out_of_its_range_is_refused(option, table, capsys):
    with pytest.raises(SystemExit):
        main(["select", str(table), "--out", "list.txt", option])
    assert option.split("=")[0] in capsys.readouterr().err
