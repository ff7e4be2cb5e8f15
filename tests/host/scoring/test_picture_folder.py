"""JEPAReferenceFolder: the newest pictures of a folder, whatever lies in it, and nothing outside."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
import pytest
import torch
from jepa_guidance.host.encoders.host_encoder import combined
from jepa_guidance.host.scoring.picture_folder import FolderPictures
from jepa_guidance.jepa_core.folders.reading import read_picture
from jepa_guidance.nodes.reference_folder import JEPAReferenceFolder
from PIL import Image

from tests.host.scoring.test_references import CLOSE, SETTINGS, embedded

linux = pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The host's output folder, with a folder of pictures beside it."""
    for name in ("output", "input", "secret"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "input"))
    save(tmp_path / "secret" / "secret.png")
    return tmp_path / "output"


def save(file: Path, seed: int = 0, mode: str = "RGB", **options: Any) -> Image.Image:
    """A random picture in a file that is `seed` minutes old."""
    generator = np.random.default_rng(seed)
    shape = (30, 40) if mode == "L" else (30, 40, len(mode))
    picture = Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8))
    picture.save(file, **options)
    os.utime(file, (1_700_000_000 - 60 * seed,) * 2)
    return picture


def tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)[None]


def run(encoder: Any, **changes: Any) -> tuple:
    values = {"folder": "output", "subfolder": "", "count": 10, "with_subfolders": False}
    values |= {**SETTINGS, "mode": "no scores", **changes}
    with torch.inference_mode():
        return JEPAReferenceFolder.execute(encoder=encoder, **values).args


def test_the_newest_pictures_are_the_reference(tiny, output):
    pictures = [save(output / f"{4 - seed}.png", seed) for seed in range(4)]
    (output / "notes.txt").write_text("not a picture")
    (output / "folder.png").mkdir()
    reference, text = run(tiny.encoder, count=3)
    expected = torch.cat([embedded(tiny.encoder, tensor(picture)) for picture in pictures[:3]])
    torch.testing.assert_close(reference.parts[0].embeddings, expected, **CLOSE)
    assert text.splitlines()[0] == "3 reference images"
    assert len(run(tiny.encoder)[0]) == 4


def test_subfolders_and_the_input_folder(tiny, output):
    (output / "a" / "b").mkdir(parents=True)
    save(output / "a" / "b" / "x.png")
    save(output.parent / "input" / "y.png")
    save(output.parent / "input" / "z.png")
    assert len(run(tiny.encoder, subfolder="a/b")[0]) == 1
    assert len(run(tiny.encoder, subfolder="a/../a/b/.")[0]) == 1
    assert len(run(tiny.encoder, folder="input")[0]) == 2


def test_pictures_are_turned_and_laid_over_white(tiny, output):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right by a quarter
    turned = save(output / "turned.png", 0, exif=exif).transpose(Image.Transpose.ROTATE_270)
    alpha = tensor(save(output / "alpha.webp", 1, "RGBA", lossless=True, exact=True))
    grey = save(output / "grey.png", 2, "L").convert("RGB")
    pictures = list(FolderPictures(output, 9))
    assert [tuple(picture.shape) for picture in pictures] == [(40, 30, 3), (30, 40, 4), (30, 40, 3)]
    assert torch.equal(pictures[0][None], tensor(turned))
    assert torch.equal(pictures[1][None], alpha)
    assert torch.equal(pictures[2][None], tensor(grey))
    white = alpha[..., :3] * alpha[..., 3:] + 1 - alpha[..., 3:]
    torch.testing.assert_close(
        run(tiny.encoder)[0].parts[0].embeddings,
        torch.cat([embedded(tiny.encoder, one) for one in (tensor(turned), white, tensor(grey))]),
        **CLOSE,
    )


def test_colours_of_every_kind_are_read(output):
    levels = np.linspace(0, 65535, 30 * 40).reshape(30, 40).astype(np.uint16)
    Image.fromarray(levels).save(output / "deep.png")
    deep = read_picture(output / "deep.png")
    torch.testing.assert_close(deep[..., 0], torch.from_numpy(levels / 65535).float())
    palette = save(output / "plain.png").quantize(8)
    palette.save(output / "palette.png", transparency=0)
    assert read_picture(output / "palette.png").shape == (30, 40, 4)
    Image.new("CMYK", (4, 4)).save(output / "print.jpg")
    assert read_picture(output / "print.jpg").shape == (4, 4, 3)
    Image.new("1", (4, 4)).save(output / "one.png")
    assert read_picture(output / "one.png").shape == (4, 4, 3)


def test_files_that_are_broken_are_skipped_and_named(tiny, output):
    save(output / "good.png", 20)
    content = (output / "good.png").read_bytes()
    (output / "half.png").write_bytes(content[: len(content) // 2])
    (output / "empty.jpg").write_bytes(b"")
    (output / "text.png").write_text("hello")
    (output / "script.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    )  # would start a program
    huge = bytearray(content)
    huge[16:24] = (20_000).to_bytes(4, "big") * 2
    (output / "huge.png").write_bytes(huge)
    (output / "bytes.png").write_bytes(content[:60] + bytes(200) + content[260:])
    reference, text = run(tiny.encoder, count=1)
    assert len(reference) == 1
    assert text.startswith("1 reference image\nfew images: each is 100 % of them")
    assert text.splitlines()[2].startswith("skipped: ")
    for name in ("half", "empty", "text", "script", "huge", "bytes"):
        assert f"{name}." in text
    both = combined([(tiny.encoder, 1.0), (tiny.make_encoder(), 1.0)])
    assert len(run(both)[0]) == 1
    (output / "good.png").unlink()
    with pytest.raises(ValueError, match="holds no picture that can be read; skipped"):
        run(tiny.encoder)


def test_many_broken_files_do_not_fill_the_text(tiny, output):
    save(output / "good.png")
    for number in range(25):
        (output / f"{number}.png").write_text("x")
    text = run(tiny.encoder)[1]
    assert text.endswith("and 15 more")
    assert len(text) < 3000


@linux
def test_links_out_of_the_folder_are_not_followed(tiny, output):
    secret = output.parent / "secret"
    save(output / "good.png", 5)
    (output / "link.png").symlink_to(secret / "secret.png")
    (output / "self.png").symlink_to(output / "self.png")
    (output / "good_link.png").symlink_to(output / "good.png")
    (output / "folder").symlink_to(secret)
    os.mkfifo(output / "pipe.png")
    assert len(run(tiny.encoder)[0]) == 2
    with pytest.raises(ValueError, match="leads out of the output folder"):
        run(tiny.encoder, subfolder="folder")


@pytest.mark.parametrize(
    "subfolder",
    ["..", "../secret", "a/../../secret", "/", "/etc", "~", "a\0b", "none", "good.png", "x" * 5000, "\ud800", "C:\\",
     "../output2"],
)  # fmt: skip
def test_no_other_folder_is_read(tiny, output, subfolder):
    save(output / "good.png")
    (output.parent / "output2").mkdir()
    with pytest.raises(ValueError, match=r"subfolder .* (leads|is not)|There is no folder"):
        run(tiny.encoder, subfolder=subfolder)
    assert JEPAReferenceFolder.fingerprint_inputs("output", subfolder, False) != 0  # does not raise


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folder": "temp"}, "folder must be one of output, input"),
        ({"folder": None}, "folder must be one of"),
        ({"subfolder": 3}, "subfolder must be text"),
        ({"with_subfolders": "yes"}, "with_subfolders must be true or false"),
        ({"count": 0}, "count 0 is outside"),
        ({"count": 1.5}, "count must be a whole number"),
        ({"mode": "best"}, "mode must be one of"),
        ({}, "holds no picture that can be read; make some first"),
    ],
)
def test_values_that_do_not_fit_are_refused(tiny, output, changes, message):
    with pytest.raises(ValueError, match=message):
        run(tiny.encoder, **changes)


def test_pictures_in_a_folder_below_are_pointed_to(tiny, output):
    (output / "jepa").mkdir()
    for number in (1, 2):
        save(output / "jepa" / f"{number}.png", number)
    with pytest.raises(
        ValueError,
        match="holds no picture itself; its folder jepa holds 2: add its name to subfolder, or set with_subfolders",
    ):
        run(tiny.encoder)
    assert len(run(tiny.encoder, subfolder="jepa")[0]) == 2
    (output / "jepa" / "broken.png").write_text("x")
    save(output / "0.png")
    reference, text = run(tiny.encoder, with_subfolders=True)
    assert len(reference) == 3
    assert "skipped: jepa/broken.png (" in text


def test_it_runs_again_when_the_pictures_change(output):
    def state() -> str | float:
        return JEPAReferenceFolder.fingerprint_inputs(
            folder="output", subfolder="", with_subfolders=True, count=3
        )

    save(output / "a.png", 1)
    before = state()
    (output / "notes.txt").write_text("x")
    assert state() == before
    save(output / "b.png", 2)
    after = state()
    assert after != before
    os.utime(output / "a.png", (1, 1))
    assert state() != after
    after = state()
    (output / "below").mkdir()
    save(output / "below" / "c.png", 3)
    assert state() != after
    for linked in ("subfolder", "with_subfolders"):
        values = {"folder": "output", "subfolder": "", "with_subfolders": False} | {linked: None}
        found = [JEPAReferenceFolder.fingerprint_inputs(**values) for _ in range(2)]
        assert found[0] != found[1]
