"""python -m jepa_core score and reference, as a user runs them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr
from pathlib import Path
from threading import Semaphore
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from jepa_core import Reference, load_reference, save_reference
from jepa_core.folders import run as running
from jepa_core.folders.commands import main
from jepa_core.folders.journal import journal_of
from jepa_core.folders.reading import read_picture
from jepa_core.folders.scorer import Scorer
from jepa_core.folders.table import read_table
from jepa_core.novelty import Nearest, distances_within
from jepa_core.reference import ReferencePart, percentile
from tests.conftest import ROOT
from tests.core.folders.conftest import SIZE, command, save, scorer_of
from tests.core.folders.test_journal import entries_of

linux = pytest.mark.skipif(sys.platform != "linux", reason="signals, links and /dev/full")
QUICK = ("--image-size", SIZE, "--projection", 8, "--device", "cpu")


def pictures(folder: Path) -> dict[str, Path]:
    """Four pictures in two folders, one of them twice, and three files that are none."""
    files = {"a": save(folder / "a.png", 1), "b": save(folder / "deep" / "b.jpg", 2, (50, 20))}
    files |= {"c": save(folder / "deep" / "c.webp", 3, mode="RGBA"), "d": save(folder / "d.tif", 4)}
    files["twin"] = folder / "deep" / "twin.png"
    files["twin"].write_bytes(files["a"].read_bytes())
    for name, content in (("empty", b""), ("text", b"hello"), ("half", files["a"].read_bytes()[:900])):
        files[name] = folder / f"{name}.png"
        files[name].write_bytes(content)
    return files


def score(encoder: Path, folder: Path, out: Path, *more: object) -> None:
    """In this process, which is faster."""
    assert main([*map(str, ("score", folder, "--encoder", encoder, "--out", out, *QUICK, *more))]) == 0


def refusal(*arguments: object) -> str:
    """The one line that a command says before it ends with 2."""
    stream = io.StringIO()
    with redirect_stderr(stream):
        assert main([*map(str, arguments)]) == 2
    (line,) = stream.getvalue().splitlines()
    assert line.startswith("error: ")
    return line


# --- score ----------------------------------------------------------------------------------------------------------


def test_a_table_says_of_every_file_what_it_is_and_what_the_scorer_makes_of_it(tmp_path, encoder_folder):
    files = pictures(tmp_path / "in")
    done = command("score", "in", "--encoder", encoder_folder, "--out", "s.parquet", *QUICK, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "8 pictures: 4 scored now, 3 not readable" in done.stdout
    assert done.stderr.count("not scored: ") == 3
    table = pq.read_table(tmp_path / "s.parquet")
    vector = pa.list_(pa.float32(), 64)
    assert [(field.name, field.type) for field in table.schema] == [
        *(("path", pa.string()), ("hash", pa.string()), ("width", pa.int32()), ("height", pa.int32())),
        *(("bytes", pa.int64()), ("score", pa.float64()), ("embedding", vector), ("smoothed", vector)),
        *(("novelty", pa.float64()), ("more_novel_than", pa.float64()), ("time", pa.timestamp("us", "UTC"))),
        ("error", pa.string()),
    ]
    scorer = scorer_of(encoder_folder)
    assert json.loads(table.schema.metadata[b"jepa_settings"]) == json.loads(scorer.settings.text)
    rows = {row["path"]: row for row in table.to_pylist()}
    assert list(rows) == sorted(map(str, files.values()))
    for name, file in files.items():
        row = rows[str(file)]
        assert row["hash"] == hashlib.sha256(file.read_bytes()).hexdigest()
        assert row["bytes"] == file.stat().st_size
        assert abs(row["time"].timestamp() - time.time()) < 300
        assert row["novelty"] is row["more_novel_than"] is None
        if name in ("empty", "text", "half"):
            assert row["error"]
            assert (row["width"], row["height"], row["score"], row["embedding"]) == (0, 0, None, None)
            continue
        picture = read_picture(file)
        (found,) = scorer.score([scorer.prepare(picture)])
        assert (row["height"], row["width"]) == tuple(picture.shape[:2])
        assert (row["score"], row["error"]) == (found.score, None)
        assert np.array_equal(np.float32(row["embedding"]), found.embedding)
        assert np.array_equal(np.float32(row["smoothed"]), found.smoothed)


def test_again_nothing_is_scored_and_new_files_are(tmp_path, encoder_folder, monkeypatch, capsys):
    pictures(tmp_path / "in")
    out = tmp_path / "s.parquet"
    score(encoder_folder, tmp_path / "in", out)
    before = pq.read_table(out)
    with monkeypatch.context() as patch:
        patch.setattr(running.Scorer, "score", None)
        score(encoder_folder, tmp_path / "in", out)
        assert pq.read_table(out).equals(before)
        # moved and copied contents are known
        os.rename(tmp_path / "in" / "a.png", tmp_path / "in" / "moved.png")
        out.unlink()
        score(encoder_folder, tmp_path / "in", out)
    save(tmp_path / "in" / "new.png", 9)
    capsys.readouterr()
    score(encoder_folder, tmp_path / "in", out)
    assert "9 pictures: 1 scored now" in capsys.readouterr().out
    assert len(entries_of(journal_of(out))) == 8


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        ((), "projected on 48 outputs"),
        (("--exact",), "exact"),
        (("--top-k", 3), "top 3"),
        (("--projection", 5), "projected on 5 outputs"),
        (("--no-score",), "no scores"),
    ],
)
def test_kinds_of_score_and_looks(tmp_path, encoder_folder, options, mode):
    file = save(tmp_path / "a.png", 1, (60, 40))
    out = tmp_path / "s.parquet"
    look = ("--image-size", 42, "--fit", "crop", "--no-antialias", "--batch", 2, "--threads", 1)
    assert main([*map(str, ("score", file, "--encoder", encoder_folder, "--out", out, *look, *options))]) == 0
    scorer = scorer_of(encoder_folder, image_size=42, fit="crop", antialias="off", mode=mode)
    table = read_table(out)
    assert table.settings == scorer.settings
    (found,) = scorer.score([scorer.prepare(read_picture(file))])
    assert table.data.column("score").to_pylist() == [found.score]


# --- kills ----------------------------------------------------------------------------------------------------------


def many(folder: Path, count: int, broken: int) -> None:
    """Pictures of all formats, every tenth a copy of another, and broken ones among them."""
    kinds = (("png", "RGB"), ("jpg", "L"), ("webp", "RGBA"), ("bmp", "RGB"), ("tif", "RGB"), ("gif", "L"))
    for number in range(count - broken):
        suffix, mode = kinds[number % len(kinds)]
        seed = number - 6 if number % 10 == 9 else number
        save(folder / f"{number % 7}" / f"{number:05d}.{suffix}", seed, (24 + seed % 9, 30), mode)
    for number in range(broken):
        content = (b"", b"hello", os.urandom(300), b"\x89PNG\r\n\x1a\n")[number % 4]
        (folder / f"{number % 7}" / f"broken{number}.png").write_bytes(content)


def without_times(file: Path) -> Any:
    return pq.read_table(file).drop_columns(["time"])


@linux
@pytest.mark.parametrize(
    ("count", "broken", "kills"),
    [(60, 6, 1), pytest.param(2000, 50, 3, marks=[pytest.mark.long, pytest.mark.timeout(3600)])],
)
def test_killed_it_ends_with_the_same_table_and_each_is_scored_once(
    tmp_path, encoder_folder, capsys, count, broken, kills
):
    many(tmp_path / "in", count, broken)
    out = tmp_path / "killed.parquet"
    words = ["score", tmp_path / "in", "--encoder", encoder_folder, "--out", out, *QUICK]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    journal = journal_of(out)
    for part in range(1, kills + 1):
        program = subprocess.Popen([sys.executable, "-m", "jepa_core", *map(str, words)], env=environment)
        # at any byte of an entry
        while not journal.exists() or len(list(whole_entries(journal))) < part * count // (kills + 2):
            assert program.poll() is None
            time.sleep(0.005)
        program.send_signal(signal.SIGKILL)
        program.wait()
        assert not out.exists()
        assert not list(tmp_path.glob(".saving*"))
    score(encoder_folder, tmp_path / "in", out)
    done = capsys.readouterr().out
    whole = tmp_path / "whole.parquet"
    score(encoder_folder, tmp_path / "in", whole)
    assert without_times(out).equals(without_times(whole))
    assert len(read_table(out)) == count
    contents = {hashlib.sha256(file.read_bytes()).digest() for file in (tmp_path / "in").glob("*/*")}
    names = [json.loads(body[: body.index(b"\n")])["hash"] for body in entries_of(journal)]
    assert len(names) == len(set(names)) == len(contents)
    bad = [row for row in read_table(out).data.to_pylist() if row["error"]]
    assert len(bad) == broken
    assert all(Path(row["path"]).name.startswith("broken") for row in bad)
    assert f"{broken} not readable" in done


def whole_entries(journal: Path) -> Any:
    """The entries in a journal that is being written."""
    content = journal.read_bytes()
    place = len(b"JEPA scores 1\n")
    while place + 8 <= len(content):
        end = place + 8 + int.from_bytes(content[place : place + 4], "little")
        if end > len(content):
            return
        yield place
        place = end


@linux
def test_stopped_from_the_keyboard_it_says_how_to_go_on(tmp_path, encoder_folder):
    many(tmp_path / "in", 300, 0)
    out = tmp_path / "s.parquet"
    words = ["score", tmp_path / "in", "--encoder", encoder_folder, "--out", out, *QUICK]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    program = subprocess.Popen(
        [sys.executable, "-m", "jepa_core", *map(str, words)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell may have it ignored
    )
    while not journal_of(out).exists() or journal_of(out).stat().st_size < 5000:
        time.sleep(0.01)
    program.send_signal(signal.SIGINT)
    _, said = program.communicate(timeout=60)
    assert program.returncode == 130
    assert said.splitlines()[-1] == "stopped; run the same command again to go on"
    assert "Traceback" not in said


# --- speed ----------------------------------------------------------------------------------------------------------


def test_the_next_pictures_are_read_while_the_encoder_works(tmp_path, encoder_folder, monkeypatch):
    paths = [str(save(tmp_path / "in" / f"{number}.png", number)) for number in range(8)]
    scorer, read, scored = scorer_of(encoder_folder), Semaphore(0), []
    own = scorer.score

    def prepare(*arguments, **options):
        prepared = Scorer.prepare(scorer, *arguments, **options)
        read.release()
        return prepared

    def score(pictures, on_pass=lambda: None):
        first = not scored
        scored.extend(pictures)
        for _ in range(2 if first else 1):  # this picture's own, and the one after it
            assert len(scored) == len(paths) or read.acquire(timeout=60)
        return own(pictures, on_pass)

    monkeypatch.setattr(scorer, "prepare", prepare)
    monkeypatch.setattr(scorer, "score", score)
    with running.Journal(tmp_path / "journal", scorer.settings) as journal:
        run = running.score_files(paths, scorer, journal, batch=1, threads=1)
    assert run.scored == len(scored) == len(paths)
    assert 0 <= run.waiting <= run.seconds


def test_readers_leave_torch_as_it_was(tmp_path, scorer):
    paths = [str(save(tmp_path / f"{number}.png", number)) for number in range(6)]
    before = torch.get_num_threads(), torch.backends.cuda.matmul.fp32_precision
    with running.Journal(tmp_path / "journal", scorer.settings) as journal:
        running.score_files(paths, scorer, journal, threads=3)
    assert (torch.get_num_threads(), torch.backends.cuda.matmul.fp32_precision) == before


# --- files that change or go away -------------------------------------------------------------------------------------


@linux
def test_files_that_go_away_change_or_may_not_be_read_are_tried_again(tmp_path, scorer, monkeypatch):
    paths = [str(save(tmp_path / f"{name}.png", number)) for number, name in enumerate("abcd")]
    gone, changing = paths[1], paths[2]
    os.unlink(gone)
    plain = running.pixels_of

    def pixels_of(opened: Any) -> Any:
        if opened.fp.name == changing:
            os.utime(changing, (1, 1))
        return plain(opened)

    with running.Journal(tmp_path / "journal", scorer.settings) as journal:
        with monkeypatch.context() as patch:
            patch.setattr(running, "pixels_of", pixels_of)
            run = running.score_files(paths, scorer, journal)
        assert run.errors(journal) == [
            (gone, "No such file or directory"),
            (changing, "it changed while it was read; run again"),
        ]
        rows = list(running.rows_of(run, journal))
        assert [bool(row.error) for row in rows] == [False, True, True, False]
        assert len(journal) == 2
        run = running.score_files(paths, scorer, journal)
        assert (run.scored, len(run.errors(journal))) == (1, 1)


def test_of_a_batch_only_the_picture_that_has_no_score_is_an_error(tmp_path, scorer, monkeypatch):
    paths = [str(save(tmp_path / f"{number}.png", number)) for number in range(5)]
    plain = running.pixels_of

    def pixels_of(opened: Any) -> Any:
        spoil = torch.nan if opened.fp.name == paths[2] else 1
        return plain(opened) * spoil

    monkeypatch.setattr(running, "pixels_of", pixels_of)
    with running.Journal(tmp_path / "journal", scorer.settings) as journal:
        run = running.score_files(paths, scorer, journal, batch=4)
        ((path, error),) = run.errors(journal)
    assert path == paths[2]
    assert "NaN" in error
    assert run.scored == 4


@linux
def test_names_of_any_bytes_are_scored_and_found_again(tmp_path, encoder_folder):
    from jepa_core.folders.listing import path_of_text

    names = [b"caf\xe9.png", "\u6f22\u5b57 \U0001f600.png".encode(), b"a\nb.png", b"-x.png"]
    for number, name in enumerate(names):
        save(tmp_path / "plain.png", number)
        (tmp_path / "in").mkdir(exist_ok=True)
        os.rename(tmp_path / "plain.png", tmp_path / "in" / os.fsdecode(name))
    score(encoder_folder, tmp_path / "in", tmp_path / "s.parquet")
    paths = read_table(tmp_path / "s.parquet").data.column("path").to_pylist()
    assert sorted(os.path.basename(os.fsencode(path_of_text(path))) for path in paths) == sorted(names)


# --- references -----------------------------------------------------------------------------------------------------


def test_a_table_a_folder_and_a_reference_give_each_other(tmp_path, encoder_folder):
    pictures(tmp_path / "in")
    out = tmp_path / "s.parquet"
    score(encoder_folder, tmp_path / "in", out)
    for source, name in ((out, "a"), (tmp_path / "in", "b")):
        more = ("--encoder", encoder_folder, *QUICK)
        made = tmp_path / f"{name}.safetensors"
        assert main([*map(str, ("reference", source, "--out", made, *more))]) == 0
    one, other = (load_reference(tmp_path / f"{name}.safetensors") for name in "ab")
    table = read_table(out)
    good = [row for row in table.data.to_pylist() if not row["error"]]
    for made in (one, other):
        (part,) = made.parts
        assert made.how == table.settings.how
        assert part.scores.tolist() == [row["score"] for row in good]
        assert torch.equal(part.embeddings, torch.tensor([row["embedding"] for row in good]))
        assert torch.equal(part.smoothed, torch.tensor([row["smoothed"] for row in good]))
    back = tmp_path / "back.parquet"
    assert main([*map(str, ("reference", tmp_path / "a.safetensors", "--out", back))]) == 0
    again = read_table(back)
    assert again.settings == table.settings
    for name in ("score", "embedding", "smoothed"):
        assert again.data.column(name).to_pylist() == [row[name] for row in good]
    few = tmp_path / "few.safetensors"
    assert main([*map(str, ("reference", out, "--out", few, "--count", 2))]) == 0
    assert len(load_reference(few)) == 2


def test_novelty_beside_a_reference_is_the_mathematics(tmp_path, encoder_folder):
    usual = [save(tmp_path / "usual" / f"{number}.png", number) for number in range(9)]
    made = tmp_path / "r.safetensors"
    words = ("reference", tmp_path / "usual", "--out", made, "--encoder", encoder_folder, "--no-score")
    assert main([*map(str, (*words, "--image-size", SIZE))]) == 0
    save(tmp_path / "in" / "new.png", 50)
    (tmp_path / "in" / "usual.png").write_bytes(usual[3].read_bytes())
    (tmp_path / "in" / "z.png").write_bytes(b"x")
    score(encoder_folder, tmp_path / "in", tmp_path / "s.parquet", "--reference", made)
    new, old, broken = read_table(tmp_path / "s.parquet").data.to_pylist()
    points = load_reference(made).parts[0].embeddings
    distance = (points - torch.tensor(new["embedding"])).norm(dim=1).sort().values[:5].mean().item()
    assert new["novelty"] == pytest.approx(distance, rel=1e-5)
    own = distances_within(points).sort().values.tolist()
    assert new["more_novel_than"] == percentile(new["novelty"], own)
    others = torch.cat([points[:3], points[4:]])
    assert old["novelty"] == pytest.approx(Nearest(others)(points[3:4]).item(), rel=1e-5)
    assert broken["novelty"] is broken["more_novel_than"] is None


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, encoder_folder: Path) -> Path:
    """A folder of things to name in options."""
    folder = tmp_path_factory.mktemp("place")
    save(folder / "in" / "a.png")
    (folder / "empty").mkdir()
    (folder / "bad.parquet").write_text("hello")
    pq.write_table(pa.table({"a": [1]}), folder / "other.parquet")
    score(encoder_folder, folder / "in", folder / "crop.parquet", "--fit", "crop")
    (folder / "bad.safetensors").write_text("hello")
    points = torch.zeros(3, 8)
    fingerprint = scorer_of(encoder_folder).settings.fingerprint
    how = {"mode": "no scores", "fit": "squash", "antialias": "on"}
    for name, changes, own in (
        ("encoder", {}, ("elsewhere", "x", SIZE)),
        ("weights", {}, (encoder_folder.name, "x", SIZE)),
        ("size", {}, (encoder_folder.name, fingerprint, 42)),
        ("look", {"fit": "crop"}, (encoder_folder.name, fingerprint, SIZE)),
    ):
        part = ReferencePart(*own, points, points.clone())
        save_reference(Reference((part,), how | changes), folder / f"{name}.safetensors")
    both = [ReferencePart(name, name, 28, points.clone(), points.clone()) for name in ("one", "two")]
    save_reference(Reference(tuple(both), how), folder / "both.safetensors")
    (folder / "folder.parquet").mkdir()
    return folder


BAD = {
    "no path": (("none", {}), "PATH .*none does not exist; name a folder of pictures"),
    "no pictures": (("empty", {}), "PATH .*empty: no pictures there"),
    "no encoder": (("in", {"encoder": "none"}), "--encoder none: no such file or folder, and no known name"),
    "no weights": (("in", {"encoder": "empty"}), "--encoder empty: .*does not exist"),
    "a bad encoder": (("in", {"encoder": "bad.safetensors"}), "--encoder bad.safetensors: "),
    "a bad size": (("in", {"image-size": 30}), "--image-size 30: image_size must be a multiple of the patch size 14"),
    "no device": (("in", {"device": "toaster"}), "--device toaster: not a device of this machine; use cpu"),
    "too many outputs": (("in", {"projection": 65}), "--projection 65: .*larger than the embedding"),
    "another suffix": (("in", {"out": "s.csv"}), "--out s.csv: the name must end in .parquet"),
    "no folder": (("in", {"out": "none/s.parquet"}), "--out none/s.parquet: there is no folder none; make it first"),
    "a folder": (("in", {"out": "folder.parquet"}), "--out folder.parquet: is a folder"),
    "not a table": (("in", {"out": "bad.parquet"}), "--out bad.parquet: .* is not a table of scores"),
    "another table": (("in", {"out": "other.parquet"}), "--out other.parquet: .* is not a table of scores"),
    "other settings": (("in", {"out": "crop.parquet"}), "--out crop.parquet: it was made with fit crop, not squash"),
    "no reference": (("in", {"reference": "none"}), "--reference none: none does not exist"),
    "a bad reference": (("in", {"reference": "bad.safetensors"}), "--reference bad.safetensors: .*damaged"),
    "another encoder's": (("in", {"reference": "encoder.safetensors"}), "it was made with elsewhere at 28 px, this run"),
    "other weights": (("in", {"reference": "weights.safetensors"}), "with other weights; make it with this encoder"),
    "another size": (("in", {"reference": "size.safetensors"}), "at 42 px, this run has .* at 28 px"),
    "another look": (("in", {"reference": "look.safetensors"}), "made with fit crop, this run has squash; use the same"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_that_names_the_option(place, encoder_folder, monkeypatch, name):
    monkeypatch.chdir(place)
    (path, changes), message = BAD[name]
    options = {"encoder": encoder_folder, "out": "s.parquet", "image-size": SIZE, "projection": 8} | changes
    words = [word for key, value in options.items() for word in (f"--{key}", value)]
    before = sorted(os.listdir(place))
    line = refusal("score", path, *words)
    assert re.search(message, line), line
    assert sorted(os.listdir(place)) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("bad.parquet", "--out", "r.safetensors"), "PATH bad.parquet: .* is not a table of scores"),
        (("none.parquet", "--out", "r.safetensors"), "PATH none.parquet: .*[Nn]o such file"),
        (("crop.parquet", "--out", "r.parquet"), "--out r.parquet: the name must end in .safetensors"),
        (
            ("size.safetensors", "--out", "r.safetensors"),
            "--out r.safetensors: the name must end in .parquet",
        ),
        (
            ("both.safetensors", "--out", "r.parquet"),
            "PATH both.safetensors: it is of 2 encoders, a table of one",
        ),
        (("bad.safetensors", "--out", "r.parquet"), "PATH bad.safetensors: .*damaged"),
        (("in", "--out", "r.safetensors"), "--encoder is needed"),
    ],
)
def test_bad_references_and_tables_are_named(place, monkeypatch, words, message):
    monkeypatch.chdir(place)
    line = refusal("reference", *words)
    assert re.search(message, line), line


@linux
def test_a_disk_that_fills_up_is_named_and_leaves_no_half_table(tmp_path, encoder_folder, monkeypatch):
    import errno

    save(tmp_path / "in" / "a.png")
    words = ("score", tmp_path / "in", "--encoder", encoder_folder, "--out", tmp_path / "s.parquet", *QUICK)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(running.Journal, "add", full)
        assert "No space left on device); make room and run again" in refusal(*words)
    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "write_batch", full)
        line = refusal(*words)
    assert "s.parquet: it cannot be written (No space left on device); make room and run again" in line
    assert not (tmp_path / "s.parquet").exists()
    assert not list(tmp_path.glob(".saving*"))


def test_a_missing_package_is_named_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    line = refusal("score", tmp_path, "--encoder", "x", "--out", tmp_path / "s.parquet")
    assert 'missing; pip install "jepa-guidance[folders]"' in line
