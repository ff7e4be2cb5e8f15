"""Pixels of picture files against those that went in, and what hostile files do: they are refused, and nothing else."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jepa_core.folders.reading import FORMATS, MOST_PIXELS, PictureError, read_picture
from tests.core.folders.conftest import save
from tests.core.test_hostile_files import little_memory

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (30, 40, 3), dtype=np.uint8)


def pixels(file: Path) -> np.ndarray:
    """What was read, in 0 to 255."""
    return read_picture(file).numpy() * 255


# --- formats ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("a.png", {}),
        ("a.bmp", {}),
        ("a.tif", {}),
        ("a.tiff", {"compression": "tiff_lzw"}),
        ("a.webp", {"lossless": True}),
    ],
)
def test_formats_without_loss_give_the_pixels_that_went_in(tmp_path, name, how):
    Image.fromarray(COLOURS).save(tmp_path / name, **how)
    np.testing.assert_allclose(pixels(tmp_path / name), COLOURS, atol=1e-4)


def test_a_jpeg_gives_the_pixels_that_pillow_decodes(tmp_path):
    smooth = np.tile(np.linspace(0, 255, 40).astype(np.uint8)[None, :, None], (30, 1, 3))
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    np.testing.assert_allclose(pixels(tmp_path / "a.jpg"), smooth, atol=4)
    assert np.array_equal(pixels(tmp_path / "a.jpg").round(), np.asarray(Image.open(tmp_path / "a.jpg")))


def test_a_gif_and_a_palette_give_its_colours(tmp_path):
    few = np.array([[255, 0, 0], [0, 128, 255], [7, 8, 9]], np.uint8)[RNG.integers(0, 3, (30, 40))]
    palette = Image.fromarray(few).quantize(3)
    for name in ("a.gif", "a.png"):
        palette.save(tmp_path / name)
        np.testing.assert_allclose(pixels(tmp_path / name), np.asarray(palette.convert("RGB")), atol=1e-4)


def test_a_transparent_palette_has_alpha(tmp_path):
    palette = Image.fromarray(COLOURS).quantize(8)
    index = np.asarray(palette)
    for name in ("a.png", "a.gif"):
        palette.save(tmp_path / name, transparency=2)
        alpha = pixels(tmp_path / name)[..., 3]
        assert np.array_equal(alpha.round(), np.where(index == 2, 0, 255))


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif"])
def test_alpha_is_kept_and_not_multiplied(tmp_path, name):
    own = RNG.integers(0, 256, (30, 40, 4), dtype=np.uint8)
    how = {"lossless": True, "exact": True} if name == "a.webp" else {}
    Image.fromarray(own).save(tmp_path / name, **how)
    np.testing.assert_allclose(pixels(tmp_path / name), own, atol=1e-4)


def test_grey_with_alpha_and_one_bit(tmp_path):
    grey = RNG.integers(0, 256, (30, 40, 2), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "la.png")
    np.testing.assert_allclose(pixels(tmp_path / "la.png"), grey[..., [0, 0, 0, 1]], atol=1e-4)
    Image.fromarray(grey[..., 0] > 128).save(tmp_path / "one.png")
    assert np.array_equal(pixels(tmp_path / "one.png")[..., 0] > 1, grey[..., 0] > 128)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_exif_data_says(tmp_path, orientation):
    turns = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(COLOURS).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_allclose(pixels(tmp_path / "a.png"), turns[orientation](COLOURS), atol=1e-4)


def test_cmyk_is_paper_minus_ink(tmp_path):
    ink = np.zeros((8, 8, 4), np.uint8)
    ink[..., 0], ink[:4, :, 3] = 100, 50
    Image.fromarray(ink, "CMYK").save(tmp_path / "a.tif")
    found = pixels(tmp_path / "a.tif")
    paper = 255 - ink[..., :3].astype(float)
    np.testing.assert_allclose(found, paper * (255 - ink[..., 3:]) / 255, atol=1.5)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_grey_of_16_bits_keeps_them(tmp_path, name):
    levels = RNG.integers(0, 65536, (30, 40), dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / name)
    expected = torch.from_numpy(levels.astype(np.float32) / 65535)[..., None].expand(30, 40, 3)
    torch.testing.assert_close(read_picture(tmp_path / name), expected)


def test_colours_of_16_bits_are_right_to_8(tmp_path):
    deep = RNG.integers(0, 65536, (30, 40, 3), dtype=np.uint16)
    (tmp_path / "a.png").write_bytes(png(40, 30, deep.astype(">u2").tobytes(), depth=16, kind=2))
    np.testing.assert_allclose(read_picture(tmp_path / "a.png"), deep / 65535, atol=1 / 255)


@pytest.mark.parametrize(
    ("numbers", "kind", "message"),
    [
        (
            (0, 255),
            np.float32,
            r"from 0 to 255, and numbers with a point must be from 0 to 1; save it with 8",
        ),
        ((0, 65535), np.float32, r"from 0 to 65535, and numbers with a point"),
        ((-1, 1), np.float32, r"from -1 to 1, and numbers with a point"),
        (
            (0, 255),
            np.int32,
            r"from 0 to 255, and grey of 32 bits must span 0 to 65535; save it with 8 or 16 bits",
        ),
        ((0, 1), np.int32, r"from 0 to 1, and grey of 32 bits"),
        ((0, 65536), np.int32, r"from 0 to 65536, and grey of 32 bits"),
        ((-32768, 32767), np.int32, r"from -32768 to 32767, and grey of 32 bits"),
    ],
)
def test_a_picture_whose_numbers_are_on_another_scale_is_refused(tmp_path, numbers, kind, message):
    grey = np.linspace(*numbers, 1200).reshape(30, 40).astype(kind)
    Image.fromarray(grey).save(tmp_path / "a.tif", exif=turned())
    with pytest.raises(PictureError, match=message):
        read_picture(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("numbers", "kind", "scale"),
    [
        ((0, 0), np.int32, 65535),
        ((0, 65535), np.int32, 65535),
        ((0, 300), np.int32, 65535),
        ((0, 255), np.uint16, 65535),
        ((0, 0.01), np.float32, 1),
        ((-0.1, 1.2), np.float32, 1),
    ],
)
def test_a_dark_or_sharpened_picture_is_read_as_it_is(tmp_path, numbers, kind, scale):
    grey = np.linspace(*numbers, 1200).reshape(30, 40).astype(kind)
    Image.fromarray(grey).save(tmp_path / "a.tif")
    expected = torch.from_numpy((grey / scale).clip(0, 1)).float()
    torch.testing.assert_close(read_picture(tmp_path / "a.tif")[..., 1], expected)
    if kind is np.uint16:
        Image.fromarray(grey).save(tmp_path / "a.png", exif=turned())
        assert read_picture(tmp_path / "a.png").shape == (40, 30, 3)


def turned() -> Image.Exif:
    """EXIF data of a picture that lies on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_numbers_with_a_point_are_from_0_to_1(tmp_path):
    light = RNG.random((30, 40)).astype(np.float32)
    Image.fromarray(light).save(tmp_path / "a.tif")
    torch.testing.assert_close(read_picture(tmp_path / "a.tif")[..., 1], torch.from_numpy(light))
    light[3, 3] = np.nan
    Image.fromarray(light).save(tmp_path / "a.tif")
    with pytest.raises(PictureError, match="not finite"):
        read_picture(tmp_path / "a.tif")


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tif"])
def test_of_an_animation_the_first_frame_is_read(tmp_path, name):
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue", "lime")]
    how = {"lossless": True} if name == "a.webp" else {}
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **how)
    assert np.array_equal(pixels(tmp_path / name)[..., :3].round(), np.asarray(frames[0]))


def test_an_open_file_is_read_too(tmp_path):
    save(tmp_path / "a.png")
    with open(tmp_path / "a.png", "rb") as file:
        assert torch.equal(read_picture(file), read_picture(tmp_path / "a.png"))


# --- hostile files --------------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, rows: bytes, *, depth: int = 8, kind: int = 2, before: bytes = b"") -> bytes:
    """A PNG file with these bytes as rows, whatever its header says."""
    length = len(rows) // max(1, height)
    lines = b"".join(b"\0" + rows[i * length : (i + 1) * length] for i in range(height)) if length else rows
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + head + before + chunk(b"IDAT", zlib.compress(lines, 9)) + chunk(b"IEND", b"")
    )


def zipped(count: int) -> bytes:
    return zlib.compress(bytes(count), 9)


def halved(content: bytes) -> bytes:
    return content[: len(content) // 2]


def saved(**how: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(COLOURS).save(stream, **how)
    return stream.getvalue()


HOSTILE = {
    "nothing": (lambda: b"", "not a picture"),
    "one byte": (lambda: b"\x89", "not a picture"),
    "text": (lambda: b"hello", "not a picture"),
    "postscript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
    "a drawing": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
    "portable": (lambda: b"P6 2 2 255 " + bytes(12), "not a picture"),
    "a huge header": (lambda: png(20_000, 20_000, b""), "pixels"),
    "the largest header": (lambda: png(2**31 - 1, 2**31 - 1, b""), "pixels"),
    "just too many": (lambda: png(10_001, 10_000, b""), "10001 x 10000 pixels"),
    "no size": (lambda: png(0, 0, b""), "."),
    "half a png": (lambda: halved(saved(format="PNG")), "."),
    "half a jpeg": (lambda: halved(saved(format="JPEG")), "."),
    "half a webp": (lambda: halved(saved(format="WEBP")), "."),
    "half a tiff": (lambda: halved(saved(format="TIFF")), "."),
    "half a gif": (lambda: halved(saved(format="GIF")), "."),
    "half a bmp": (lambda: halved(saved(format="BMP")), "."),
    "a header without pixels": (lambda: png(9_000, 9_000, b""), "."),
    "a zip bomb in a text": (
        lambda: png(8, 8, bytes(192), before=chunk(b"zTXt", b"a\0\0" + zipped(1 << 28))),
        "too large",
    ),
    "a zip bomb in a profile": (lambda: png(8, 8, bytes(192), before=chunk(b"iCCP", b"a\0\0" + zipped(1 << 28))), "too"),
    "more pixels than the header says": (lambda: png(8, 8, bytes(1 << 28)), None),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_within_little_memory(tmp_path, name):
    make, message = HOSTILE[name]
    file = tmp_path / "file.png"
    file.write_bytes(make())
    with little_memory(1 << 30):
        if message is None:  # what is too much is left out
            assert read_picture(file).shape == (8, 8, 3)
            return
        with pytest.raises(PictureError, match=message) as refusal:
            read_picture(file)
    assert "allocat" not in str(refusal.value)
    assert str(tmp_path) not in str(refusal.value)
    assert len(str(refusal.value)) < 400


def test_as_many_pixels_as_allowed_are_read(tmp_path):
    side = int(MOST_PIXELS**0.5)
    Image.new("1", (side, side)).save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png").shape == (side, side, 3)


def test_every_change_of_a_byte_is_read_or_refused(tmp_path):
    """Of every format: whatever the changed bytes mean to its reader."""
    for format in FORMATS:
        content = saved(format=format)
        for place in np.linspace(0, len(content) - 1, 60).astype(int):
            changed = bytearray(content)
            changed[place] ^= 0xFF
            try:
                shape = read_picture(io.BytesIO(bytes(changed))).shape
            except PictureError as error:
                assert str(error)  # noqa: PT017
                continue
            assert shape[-1] in (3, 4)
