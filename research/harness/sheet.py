"""Sheets of pictures."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

matplotlib.use("Agg")
from matplotlib.figure import Figure

DPI = 100


def sample_sheet(pixels: Tensor) -> Image.Image:
    """64 samples (64, 3, S, S) in [0, 1], eight a row, each enlarged to 128 pixels at least."""
    size = pixels.shape[-1]
    edge = 8 * size * max(1, 128 // size)
    grid = to_pil_image(make_grid(pixels.float(), padding=0).mul(255).round().byte())
    return grid.resize((edge, edge), Image.Resampling.BICUBIC)


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
    """Draw rows of pictures with a label before each row and captions below.

    Args:
        title: one line above everything.
        labels: one for each row; may hold line breaks.
        rows: pictures, the same number in each row.
        captions: one below each picture; may hold line breaks, "" for none.
        columns: a heading for each column.
        side: of a picture in pixels; smaller pictures are enlarged with bicubic interpolation.
        notes: lines at the bottom.
    """
    lines = max(len(text.splitlines()) for row in captions for text in row)
    height = len(rows) * (side + 18 * lines + 12) + 20 * len(notes) + 90
    figure = Figure((len(columns) * (side + 10) / DPI + 1.6, height / DPI), dpi=DPI, layout="constrained")
    for (line, place), axes in zip(
        ((line, place) for line in range(len(rows)) for place in range(len(columns))),
        figure.subplots(len(rows), len(columns), squeeze=False).flat,
        strict=True,
    ):
        axes.imshow(rows[line][place].convert("RGB"), interpolation="bicubic")
        axes.set(xticks=[], yticks=[])
        axes.set_xlabel(captions[line][place], fontsize=9)
        if line == 0:
            axes.set_title(columns[place], fontsize=10, color="#5a5a5a")
        if place == 0:
            axes.set_ylabel(labels[line], rotation=0, ha="right", va="center", fontsize=11)
    figure.suptitle(title, fontsize=14, x=0.01, ha="left")
    figure.supxlabel("\n".join(notes), fontsize=9, x=0.01, ha="left", color="#5a5a5a")
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return Image.open(content)
