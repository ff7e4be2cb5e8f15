"""Selections: what is kept, dropped and thinned out, and that nothing is ever overwritten."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from jepa_core.folders import selection
from jepa_core.folders.collection import Collection
from jepa_core.folders.selection import SelectionError, amount, choose, link_files, write_list
from tests.core.folders.synthetic import SETTINGS


def collection(scores: list[float], folders: str | None = None, **numbers: list[float]) -> Collection:
    """Pictures 0, 1, ... with these scores (NaN: not readable), in folders of one letter each."""
    count = len(scores)
    paths = [f"/{(folders or 'a' * count)[place]}/{place}.png" for place in range(count)]
    known = {"width": [8.0] * count, "height": [8.0] * count, "bytes": [100.0] * count}
    known |= {"score": scores, "novelty": [float("nan")] * count, "more_novel_than": [float("nan")] * count}
    columns = {name: np.array(values, dtype=float) for name, values in (known | numbers).items()}
    errors = ["broken" if score != score else None for score in scores]
    return Collection(SETTINGS, paths, [str(place) for place in range(count)], errors, columns)


NAN = float("nan")


def test_the_rarest_are_kept_by_score_or_novelty_and_what_could_not_be_read_never():
    pictures = collection([3, 1, NAN, 2, 1], novelty=[1, 5, NAN, 9, 7])
    assert choose(pictures, "score") == [1, 4, 3, 0]
    assert choose(pictures, "score", keep=amount("2")) == [1, 4]
    assert choose(pictures, "novelty", keep=amount("50%")) == [3, 4]
    assert choose(pictures, "score", keep=amount("99")) == [1, 4, 3, 0]


@pytest.mark.parametrize(
    ("text", "of_a_hundred"), [("7", 7), ("7%", 7), ("0.07", 7), ("0.001", 1), ("1.0", 100)]
)
def test_amounts(text, of_a_hundred):
    assert amount(text).of(100) == of_a_hundred


@pytest.mark.parametrize("text", ["0", "-1", "0%", "101%", "1.5", "nan", "inf", "some", ""])
def test_what_is_no_amount_is_refused(text):
    with pytest.raises(ValueError):
        amount(text)


def test_of_duplicates_the_largest_is_kept():
    pictures = collection([1, 2, 3, 4, 5], width=[8, 16, 8, 8, 8], bytes=[1, 1, 2, 5, 5])
    group = pictures.best_first([0, 1, 2, 3, 4])
    assert group == [1, 3, 4, 2, 0]
    assert choose(pictures, "score", [group[:2], [4, 3]]) == [0, 1, 2, 4]


def test_of_a_group_whose_best_has_no_score_the_next_stays():
    assert choose(collection([NAN, 2, 1]), "score", [[0, 1, 2]]) == [1]


def test_the_common_half_is_thinned_evenly_and_the_rare_half_stays():
    pictures = collection([float(place) for place in range(20)])
    assert choose(pictures, "score", cap_common=amount("2")) == [*range(10), 12, 17]
    assert choose(pictures, "score", cap_common=amount("50%")) == [*range(10), 11, 13, 15, 17, 19]
    assert choose(pictures, "score", cap_common=amount("100")) == list(range(20))


def test_balance_takes_from_each_folder_in_turn():
    #        a  a  a  a  b  b  c
    pictures = collection([1, 2, 3, 4, 5, 6, 7], "aaaabbc")
    assert choose(pictures, "score", balance=True) == [0, 4, 6]
    assert choose(pictures, "score", keep=amount("5"), balance=True) == [0, 1, 4, 5, 6]
    assert choose(pictures, "score", keep=amount("6"), balance=True) == [0, 1, 2, 4, 5, 6]
    assert choose(pictures, "score", keep=amount("1"), balance=True) == [0]


def test_a_list_is_new_and_has_a_path_a_line(tmp_path):
    file = tmp_path / "list.txt"
    write_list(file, ["/a/\u732b.png", "/b/x y.png"])
    assert file.read_bytes() == "/a/\u732b.png\n/b/x y.png\n".encode()
    with pytest.raises(SelectionError, match="it exists"):
        write_list(file, ["/c"])
    assert file.read_text(encoding="utf-8").startswith("/a/")


@pytest.mark.parametrize("name", ["/a/x\ny.png", "/a/x\ry.png", "/a/x\u2028y.png"])
def test_a_name_with_a_line_break_is_not_put_into_a_list(tmp_path, name):
    with pytest.raises(SelectionError, match="--link"):
        write_list(tmp_path / "list.txt", ["/a/fine.png", name])
    assert not (tmp_path / "list.txt").exists()


def pictures_in(folder: Path) -> list[str]:
    """Three files in two folders, two with the same name."""
    files = [folder / "one" / "x.png", folder / "two" / "x.png", folder / "two" / "deep" / "y\n.png"]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(str(file))
    return [str(file) for file in files]


def test_links_keep_their_folders_and_are_the_same_files(tmp_path):
    paths = pictures_in(tmp_path / "all")
    link_files(tmp_path / "some", paths)
    linked = [tmp_path / "some" / Path(path).relative_to(tmp_path / "all") for path in paths]
    assert all(os.path.samefile(one, path) for one, path in zip(linked, paths, strict=True))


def test_dots_in_a_path_lead_nowhere_else(tmp_path):
    paths = pictures_in(tmp_path / "all")
    link_files(tmp_path / "some", [paths[0], f"{tmp_path}/all/one/../two/x.png"])
    found = sorted(
        path.relative_to(tmp_path / "some").as_posix() for path in (tmp_path / "some").rglob("*.png")
    )
    assert found == ["one/x.png", "two/x.png"]


def test_nothing_is_linked_if_something_is_wrong(tmp_path, monkeypatch):
    paths = pictures_in(tmp_path / "all")
    used = tmp_path / "used"
    used.mkdir()
    (used / "mine.txt").write_text("mine")
    with pytest.raises(SelectionError, match="not an empty folder"):
        link_files(used, paths)
    assert [file.name for file in used.iterdir()] == ["mine.txt"]
    with pytest.raises(SelectionError, match=r"1 of 4 files are not there, such as .*gone\.png"):
        link_files(tmp_path / "new", [*paths, str(tmp_path / "gone.png")])
    with pytest.raises(SelectionError, match="make it first"):
        link_files(tmp_path / "no" / "new", paths)
    assert not (tmp_path / "new").exists()

    def far(source: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(selection.os, "link", far)
    with pytest.raises(SelectionError, match=r"another file system.*use --out"):
        link_files(tmp_path / "new", paths)


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="no second file system here")
def test_another_file_system_is_named_before_the_first_link(tmp_path):
    other = Path("/dev/shm")
    if os.stat(other).st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("no second file system here")
    with pytest.raises(SelectionError, match="another file system"):
        link_files(other / tmp_path.name, pictures_in(tmp_path / "all"))
    assert not (other / tmp_path.name).exists()
