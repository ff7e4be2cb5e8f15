"""JEPAScoreFolder: each picture of a folder is scored once, as JEPA Score Image does, and nothing outside is read."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import folder_paths
import numpy as np
import pytest
import torch
from jepa_guidance.host.comfy.required import InterruptProcessingException
from jepa_guidance.host.encoders.host_encoder import combined
from jepa_guidance.host.scoring import folder_scores
from jepa_guidance.jepa_core.folders.journal import Journal
from jepa_guidance.jepa_core.folders.reading import read_picture
from jepa_guidance.jepa_core.transparency import over_white
from jepa_guidance.jepa_core.writing import UnwritableError
from jepa_guidance.nodes.reference import JEPAReferenceNode
from jepa_guidance.nodes.score_folder import JEPAScoreFolder
from jepa_guidance.nodes.score_image import JEPAScoreImage
from PIL import Image

from tests.host.comfy.test_folders_to_write import without_rights
from tests.host.scoring.test_picture_folder import output, save  # noqa: F401 (a fixture)
from tests.host.scoring.test_picture_folder import run as of_folder

linux = pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes, links and pipes")
SETTINGS = {"mode": "exact", "top_k": 2, "fit": "squash", "antialias": True}
INPUTS = {"folder": "output", "subfolder": "", "with_subfolders": True, "count": 3, **SETTINGS}
INPUTS |= {"by": "score", "most_files": 100}


class Outputs(NamedTuple):
    images: list[torch.Tensor]
    files: list[str]
    scores: list[float]
    csv: str
    json: str
    reference: Any
    text: str

    @property
    def rows(self) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO(self.csv, newline="")))

    @property
    def by_file(self) -> dict[str, dict[str, Any]]:
        return {row["file"]: row for row in json.loads(self.json)["pictures"]}


@pytest.fixture(autouse=True)
def user(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The host's user folder, in a folder that every user can see."""
    with tempfile.TemporaryDirectory(dir="/tmp" if os.path.isdir("/tmp") else None) as folder:
        os.chmod(folder, 0o755)
        monkeypatch.setattr(folder_paths, "user_directory", folder)
        yield Path(folder)


@pytest.fixture
def passes(tiny: Any) -> list[int]:
    """How many pictures the encoder sees, from its own forward calls."""
    counted: list[int] = []
    tiny.encoder.patcher.model.model.register_forward_pre_hook(
        lambda _, args, kwargs: counted.append(len(args[0] if args else kwargs["pixel_values"])),
        with_kwargs=True,
    )
    return counted


def run(encoder: Any, **changes: Any) -> Outputs:
    with torch.inference_mode():
        return Outputs(*JEPAScoreFolder.execute(encoder=encoder, **INPUTS | changes).args)


def state(**changes: Any) -> str | float:
    return JEPAScoreFolder.fingerprint_inputs(**INPUTS | changes)


def scored(encoder: Any, files: list[Path], **changes: Any) -> tuple[Any, ...]:
    """What JEPA Score Image says of files, one after the other: for each output the list."""
    images = [read_picture(file)[None] for file in files]
    with torch.inference_mode():
        each = [JEPAScoreImage.execute(image, encoder, **SETTINGS | changes).args for image in images]
    return [args[0][0] for args in each]


def fill(folder: Path, count: int, first: int = 0) -> list[Path]:
    files = [folder / f"{number}.png" for number in range(first, first + count)]
    for number, file in enumerate(files, first):
        save(file, number, "RGBA" if number % 3 == 2 else "RGB")
    return files


@pytest.mark.parametrize(
    "changes", [{}, {"mode": "top-k"}, {"mode": "projected", "fit": "crop", "antialias": False}]
)
def test_scores_are_those_of_score_image_bit_for_bit(tiny, output, changes, monkeypatch):  # noqa: F811
    if "projected" in changes.values():  # on 48 outputs, which the small encoder lacks
        for module in ("host.scoring.modes", "jepa_core.score"):
            monkeypatch.setattr(f"jepa_guidance.{module}.PROJECTION", 8)
    files = fill(output, 5)
    found = run(tiny.encoder, **changes)
    expected = dict(zip((file.name for file in files), scored(tiny.encoder, files, **changes), strict=True))
    assert {name: row["score"] for name, row in found.by_file.items()} == expected
    assert {row["file"]: float(row["score"]) for row in found.rows} == expected
    order = sorted(expected, key=expected.__getitem__)
    assert [row["file"] for row in found.rows] == order
    assert found.files == order[:3]
    assert found.scores == [expected[name] for name in order[:3]]
    (images,) = found.images
    assert torch.equal(images, torch.stack([over_white(read_picture(output / name)) for name in order[:3]]))
    values = sorted(expected.values())
    assert found.text == (
        f"5 pictures, 5 scored now\nscore {values[0]:.2f} (rarest) to {values[-1]:.2f}, median {values[2]:.2f}"
    )


def test_the_reference_is_that_of_jepa_reference(tiny, output):  # noqa: F811
    files = fill(output, 5)
    found = run(tiny.encoder).reference
    with torch.inference_mode():
        pictures = [read_picture(file)[None] for file in files]
        lists = {name: [value] for name, value in SETTINGS.items()}
        made = JEPAReferenceNode.execute(images=pictures, encoder=[tiny.encoder], **lists).args[0]
    assert (found.how, found.label) == (made.how, made.label)
    for name in ("embeddings", "smoothed", "scores"):
        assert torch.equal(getattr(found.parts[0], name), getattr(made.parts[0], name)), name
        assert not getattr(found.parts[0], name).is_inference()


def test_a_second_run_scores_only_new_files(tiny, output, passes):  # noqa: F811
    fill(output, 4)
    first = run(tiny.encoder)
    each = sum(passes) // 4
    passes.clear()
    again = run(tiny.encoder)
    assert not passes
    assert (again.csv, again.json) == (first.csv, first.json)
    assert again.text.startswith("4 pictures, 0 scored now")
    # moved, and beside a copy
    (output / "a").mkdir()
    (output / "0.png").rename(output / "a" / "moved.png")
    (output / "copy.png").write_bytes((output / "1.png").read_bytes())
    fill(output, 2, first=4)
    more = run(tiny.encoder)
    assert sum(passes) == 2 * each
    assert more.text.startswith("7 pictures, 2 scored now")
    assert more.by_file["a/moved.png"]["score"] == first.by_file["0.png"]["score"]
    assert len(more.reference) == 7
    passes.clear()
    run(tiny.encoder, fit="crop")
    assert sum(passes) == 6 * each
    passes.clear()
    run(tiny.encoder)
    assert not passes
    assert len(run(tiny.encoder, count=100).files) == 6  # one of those with the same content


def test_an_interrupt_keeps_what_was_scored(tiny, output, passes, monkeypatch):  # noqa: F811
    fill(output, 4)
    run(tiny.encoder, most_files=1)
    each = sum(passes)

    def interrupt() -> None:
        if sum(passes) >= 3 * each:
            raise InterruptProcessingException

    with monkeypatch.context() as patched:
        patched.setattr(folder_scores, "interrupt_check", interrupt)
        with pytest.raises(InterruptProcessingException):
            run(tiny.encoder)
    passes.clear()
    assert run(tiny.encoder).text.startswith("4 pictures, 2 scored now")
    assert sum(passes) == 2 * each
    # without a pass of the encoder too
    monkeypatch.setattr(folder_scores, "interrupt_check", interrupt)
    passes.append(3 * each)
    with pytest.raises(InterruptProcessingException):
        run(tiny.encoder)


def test_the_bar_counts_files_under_each_encoder(tiny, output, monkeypatch):  # noqa: F811
    fill(output, 3)
    (output / "bad.png").write_text("x")
    moves: list[int] = []

    class Bar:
        def __init__(self, total: int) -> None:
            moves.append(-total)

        def update(self, value: int) -> None:
            moves.append(value)

    monkeypatch.setattr("jepa_guidance.nodes.score_folder.ProgressBar", Bar)
    run(combined([(tiny.encoder, 1.0), (other_encoder(tiny), 3.0)]))
    assert moves == [-8, *[1] * 8]


def other_encoder(tiny: Any) -> Any:
    other = tiny.make_encoder()
    with torch.inference_mode():
        tiny.randomise(other.patcher.model, seed=9)
    return other


def test_several_encoders_give_their_weighted_mean(tiny, output):  # noqa: F811
    files = fill(output, 4)
    both = combined([(tiny.encoder, 1.0), (other_encoder(tiny), 3.0)])
    found = run(both)
    expected = scored(both, files)
    assert [found.by_file[file.name]["score"] for file in files] == expected
    assert len(found.reference.parts) == 2
    again = run(both)
    assert again.csv == found.csv
    assert again.text.startswith("4 pictures, 0 scored now")


def test_novelty_beside_a_reference_and_among_the_folders_own(tiny, output):  # noqa: F811
    usual = output.parent / "input"
    fill(usual, 6)
    reference = run(tiny.encoder, folder="input").reference
    files = fill(output, 4, first=10)
    found = run(tiny.encoder, by="novelty", reference=reference, mode="no scores")
    with torch.inference_mode():
        each = [
            JEPAScoreImage.execute(
                read_picture(file)[None], tiny.encoder, **SETTINGS, reference=reference
            ).args
            for file in files
        ]
    for file, args in zip(files, each, strict=True):
        row = found.by_file[file.name]
        assert row["novelty"] == pytest.approx(args[4][0], rel=1e-5)
        assert row["more_novel_than"] == pytest.approx(args[5][0])
        assert row["score"] is None
    novelties = [float(row["novelty"]) for row in found.rows]
    assert novelties == sorted(novelties, reverse=True)
    assert found.scores == novelties[:3]
    # beside the score, whichever ranks
    beside = run(tiny.encoder, reference=reference)
    assert [beside.by_file[file.name]["novelty"] for file in files] == pytest.approx(
        [found.by_file[file.name]["novelty"] for file in files]
    )
    own = run(tiny.encoder, by="novelty")
    points = own.reference.parts[0].embeddings.double()
    apart = torch.cdist(points, points).sum(1) / (len(points) - 1)  # all others are among the five nearest
    assert [own.by_file[file.name]["novelty"] for file in files] == pytest.approx(apart.tolist(), rel=1e-4)
    assert run(tiny.encoder).by_file["10.png"]["novelty"] is None


def test_a_picture_alone(tiny, output):  # noqa: F811
    fill(output, 1)
    assert run(tiny.encoder).text.startswith("1 picture, 1 scored now\n")
    with pytest.raises(ValueError, match="link a reference, or set by to score"):
        run(tiny.encoder, by="novelty")


def test_broken_and_hostile_files_are_named(tiny, output):  # noqa: F811
    save(output / "good.png", 20)
    content = (output / "good.png").read_bytes()
    (output / "half.png").write_bytes(content[: len(content) // 2])
    (output / "empty.jpg").write_bytes(b"")
    (output / "text.png").write_text("hello")
    huge = bytearray(content)
    huge[16:24] = (20_000).to_bytes(4, "big") * 2
    (output / "huge.png").write_bytes(huge)
    broken = ("half.png", "empty.jpg", "text.png", "huge.png")
    for _ in range(2):  # as a journal knows them too
        found = run(tiny.encoder)
        assert found.files == ["good.png"]
        assert len(found.reference) == 1
        assert found.text.splitlines()[-1].startswith("skipped: ")
        for name in broken:
            assert f"{name} (" in found.text
            assert found.by_file[name]["error"]
            assert found.by_file[name]["score"] is None
        assert [bool(row["error"]) for row in found.rows] == [False, *[True] * 4]
    (output / "good.png").unlink()
    with pytest.raises(ValueError, match="holds no picture that can be read; skipped"):
        run(tiny.encoder)


ODD = (
    "=1+1.png",
    "@cmd.png",
    "-x.png",
    '+a,b".png',
    "\u5bcc\u58eb \U0001f600.png",
    "line\nbreak.png",
    "\u202eabc.png",
    f"{'n' * 200}.png",
)


@linux
def test_names_of_any_kind(tiny, output):  # noqa: F811
    for number, name in enumerate(ODD):
        save(output / name, number)
    (output / os.fsdecode(b"b\xff\xfe.png")).write_bytes((output / ODD[0]).read_bytes() + b" ")
    found = run(tiny.encoder, count=20)
    names = {*ODD, "b\\udcff\\udcfe.png"}
    assert set(found.by_file) == set(found.files) == names
    written = {row["file"] for row in found.rows}
    assert written == {f"./{name}" if name[0] in "=@-+" else name for name in names}
    assert not any(name.startswith(("=", "@", "-", "+")) for name in written)
    found.csv.encode()
    found.json.encode()


@linux
def test_links_out_of_the_folder_and_hidden_folders_are_not_followed(tiny, output):  # noqa: F811
    secret = output.parent / "secret"
    fill(output, 2)
    (output / "link.png").symlink_to(secret / "secret.png")
    (output / "self.png").symlink_to(output / "self.png")
    (output / "folder").symlink_to(secret)
    (output / ".hidden").mkdir()
    save(output / ".hidden" / "a.png", 7)
    os.mkfifo(output / "pipe.png")
    assert set(run(tiny.encoder).by_file) == {"0.png", "1.png"}
    with pytest.raises(ValueError, match="leads out of the output folder"):
        run(tiny.encoder, subfolder="folder")


@pytest.mark.parametrize(
    "subfolder", ["..", "../secret", "a/../../secret", "/etc", "a\0b", "none", "x" * 5000, "\ud800"]
)
def test_no_other_folder_is_read(tiny, output, subfolder):  # noqa: F811
    fill(output, 1)
    with pytest.raises(ValueError, match=r"subfolder .* (leads|is not)|There is no folder"):
        run(tiny.encoder, subfolder=subfolder)
    assert state(subfolder=subfolder) != state(subfolder=subfolder)


def test_folders_within_and_the_newest(tiny, output):  # noqa: F811
    (output / "a" / "b").mkdir(parents=True)
    save(output / "a" / "b" / "new.png", 1)
    save(output / "a" / "old.png", 9)
    save(output / "top.png", 5)
    save(output.parent / "input" / "in.png", 3)
    assert set(run(tiny.encoder).by_file) == {"a/b/new.png", "a/old.png", "top.png"}
    assert set(run(tiny.encoder, with_subfolders=False).by_file) == {"top.png"}
    assert set(run(tiny.encoder, subfolder="a").by_file) == {"a/b/new.png", "a/old.png"}
    assert set(run(tiny.encoder, most_files=2).by_file) == {"a/b/new.png", "top.png"}
    assert set(run(tiny.encoder, folder="input").by_file) == {"in.png"}


def test_it_runs_again_when_the_pictures_change(output):  # noqa: F811
    fill(output, 2)
    (output / "a").mkdir()
    before, flat = state(), state(with_subfolders=False)
    (output / "notes.txt").write_text("x")
    save(output / "a" / "deep.png", 50)
    assert state(with_subfolders=False) == flat
    after = state()
    assert after != before
    assert state(most_files=2) == before  # the newest ones are the same
    os.utime(output / "0.png", (1, 1))
    assert state() != after
    for name in ("folder", "subfolder", "with_subfolders", "most_files"):
        assert state(**{name: None}) != state(**{name: None}), name


def test_where_scores_cannot_be_kept_they_are_made_all_the_same(tiny, user, passes, monkeypatch):
    pictures, previews = user / "pictures", user / "previews"  # which other users may read and write too
    for folder, name in ((pictures, "output"), (previews, "temp")):
        folder.mkdir()
        folder.chmod(0o777)
        monkeypatch.setattr(folder_paths, f"{name}_directory", str(folder))
    fill(pictures, 2)
    kept = run(tiny.encoder)
    folder = user / "__jepa_guidance"  # nothing in there is given out over HTTP
    for file in folder.iterdir():
        file.unlink()
    if sys.platform != "win32":
        with without_rights(folder):
            passes.clear()
            found = run(tiny.encoder)
        assert passes
        assert found.csv == kept.csv
        assert (
            f"scores are not kept for the next run: {folder} cannot be written (Permission denied)"
            in found.text
        )
        assert list(folder.iterdir()) == []
    folder.rmdir()
    folder.write_text("")
    assert "scores are not kept for the next run: " in run(tiny.encoder).text
    folder.unlink()
    run(tiny.encoder)
    (file,) = folder.glob("*.journal")
    file.write_text("something else")
    assert "is no journal of scores" in run(tiny.encoder).text
    file.unlink()
    assert "not kept" not in run(tiny.encoder).text


def test_while_another_process_has_the_scores_open(tiny, output):  # noqa: F811
    fill(output, 1)
    how = {"mode": "exact", "fit": "squash", "antialias": "on"}
    part = run(tiny.encoder).reference.parts[0]
    settings = folder_scores.Settings(part.encoder, part.fingerprint, part.image_size, **how)
    with Journal(folder_scores.scores_file(settings), settings):
        assert "is in use" in run(tiny.encoder).text


def test_a_full_disk_is_named(tiny, output, monkeypatch):  # noqa: F811
    """It cannot be had in a test, so its error is raised where scores are written."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    fill(output, 1)
    monkeypatch.setattr(Journal, "add", full)
    with pytest.raises(UnwritableError, match=r"the scores into .*__jepa_guidance .*: free some space"):
        run(tiny.encoder)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: not enough memory")])
def test_a_picture_for_which_memory_is_short_is_skipped_and_named_by_both_nodes_of_folders(
    tiny,
    output,  # noqa: F811
    monkeypatch,
    error,
):
    fill(output, 3)
    Image.new("RGB", (77, 30)).save(output / "large.png")
    convert = torch.from_numpy

    def short(array: np.ndarray) -> torch.Tensor:
        if array.shape[:2] == (30, 77):
            raise error
        return convert(array)

    monkeypatch.setattr(torch, "from_numpy", short)
    reason = str(error) or "MemoryError"
    found, (reference, text) = run(tiny.encoder), of_folder(tiny.encoder)
    assert f"skipped: large.png ({reason})" in found.text
    assert f"skipped: large.png ({reason})" in text
    assert len(found.reference) == len(reference) == 3


def test_pictures_that_go_while_they_are_scored(tiny, output, monkeypatch):  # noqa: F811
    files = fill(output, 3)
    order = run(tiny.encoder).files
    score = folder_scores.score_files

    def removing(*args: Any, **more: Any) -> Any:
        done = score(*args, **more)
        (output / order[0]).unlink()
        return done

    monkeypatch.setattr(folder_scores, "score_files", removing)
    assert run(tiny.encoder).files == order[1:]
    for file in files:
        file.unlink(missing_ok=True)
    with pytest.raises(ValueError, match="holds no picture that can be read; make some first"):
        run(tiny.encoder)
    save(output / order[0], 1)
    with pytest.raises(
        ValueError, match=r"none of the pictures that were scored can be read any more \(.*No such file"
    ):
        run(tiny.encoder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folder": "temp"}, "folder must be one of output, input"),
        ({"subfolder": 3}, "subfolder must be text"),
        ({"with_subfolders": "x"}, "with_subfolders must be true or false"),
        ({"count": 0}, "count 0 is outside"),
        ({"most_files": 0}, "most_files 0 is outside"),
        ({"by": "best"}, "by must be one of"),
        ({"mode": "no scores"}, "by score needs scores; choose another mode than no scores, or by novelty"),
        ({"mode": "projected"}, "projection 48 is larger than the embedding of tiny, 16"),
        ({"mode": "top-k", "top_k": 17}, "top_k 17 is larger than the embedding of tiny, 16"),
        ({"reference": 3}, "reference must be of type JEPA_REFERENCE"),
    ],
)
def test_values_that_do_not_fit_are_refused(tiny, output, changes, message):  # noqa: F811
    fill(output, 1)
    with pytest.raises(ValueError, match=message):
        run(tiny.encoder, **changes)


def test_a_reference_that_does_not_fit_is_refused(tiny, output, passes):  # noqa: F811
    fill(output, 2)
    cropped = run(tiny.encoder, fit="crop").reference
    passes.clear()
    with pytest.raises(ValueError, match="reference was made with fit crop, this node has squash"):
        run(tiny.encoder, reference=cropped)
    with pytest.raises(ValueError, match="embeddings of different encoders are not comparable"):
        run(other_encoder(tiny), fit="crop", reference=cropped)
    assert not passes
