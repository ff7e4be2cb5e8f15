"""Contact sheets: rows of pictures with a label before each row and captions below."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

INK = "#1a1a1a"
FAINT = "#5a5a5a"
GAP = 10  # pixels between pictures


def sample_sheet(pixels: Tensor) -> Image.Image:
    """64 samples (64, 3, S, S) in [0, 1], eight a row, each enlarged to 128 pixels at least."""
    size = pixels.shape[-1]
    grid = pixels.unflatten(0, (8, 8)).permute(0, 3, 1, 4, 2).reshape(8 * size, 8 * size, 3)
    edge = 8 * size * max(1, 128 // size)
    sheet = Image.fromarray(grid.mul(255).round().byte().numpy())
    return sheet.resize((edge, edge), Image.Resampling.BICUBIC)


def contact_sheet(
    title: str,
    labels: Sequence[str],
    rows: Sequence[Sequence[Image.Image]],
    captions: Sequence[Sequence[str]],
    columns: Sequence[str],
    *,
    side: int = 168,
    notes: Sequence[str] = (),
) -> Image.Image:
    """Draw a sheet.

    Args:
        title: one line above everything.
        labels: one for each row; may hold line breaks.
        rows: pictures, the same number in each row.
        captions: one below each picture; may hold line breaks, "" for none.
        columns: a heading for each column.
        side: of a picture in pixels; smaller pictures are enlarged with bicubic interpolation.
        notes: lines at the bottom.
    """
    big, normal, small = (ImageFont.load_default(size) for size in (24, 17, 15))
    probe = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    margin = 24
    label_width = 24 + round(max(probe.multiline_textbbox((0, 0), text, font=normal)[2] for text in labels))
    caption_heights = [max(20 * len(text.splitlines()) for text in row) + 8 for row in captions]
    width = margin * 2 + label_width + len(columns) * (side + GAP)
    width = max(
        width, margin * 2 + round(max(probe.textlength(text, font=small) for text in (*notes, title)))
    )
    width = max(width, margin * 2 + round(probe.textlength(title, font=big)))
    top = margin + 44 + 28
    height = top + sum(side + extra + GAP for extra in caption_heights) + 22 * len(notes) + margin
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((margin, margin), title, fill=INK, font=big)
    for index, text in enumerate(columns):
        centre = margin + label_width + index * (side + GAP) + side // 2
        draw.text((centre, top - 14), text, fill=FAINT, font=small, anchor="mm")
    y = top
    for label, pictures, texts, extra in zip(labels, rows, captions, caption_heights, strict=True):
        draw.multiline_text((margin, y + side // 2), label, fill=INK, font=normal, anchor="lm", spacing=6)
        for index, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
            x = margin + label_width + index * (side + GAP)
            sheet.paste(picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC), (x, y))
            draw.rectangle((x - 1, y - 1, x + side, y + side), outline="#d0d0d0")
            draw.multiline_text(
                (x + side // 2, y + side + 4),
                text,
                fill=INK,
                font=small,
                anchor="ma",
                align="center",
                spacing=4,
            )
        y += side + extra + GAP
    for index, text in enumerate(notes):
        draw.text((margin, y + 22 * index), text, fill=FAINT, font=small)
    return sheet
