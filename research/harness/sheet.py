"""Sheets of pictures."""

import io
import textwrap
from collections.abc import Sequence

from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

CHARACTER = 6  # pixels of a caption's character, on average


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
    """Draw rows of pictures with a label before each row and a caption (or "") below each picture.

    Args:
        title, notes: lines at the top and at the bottom.
        labels, columns: of the rows, and above the columns. captions and labels may hold line breaks; captions and columns
            are wrapped.
        rows: pictures, the same number in each row.
        side: of a picture in pixels; smaller pictures are enlarged with bicubic interpolation.
    """
    captions = [[wrapped(text, side // CHARACTER) for text in row] for row in captions]
    lines = max(len(text.splitlines()) for row in captions for text in row)
    height = len(rows) * (side + 18 * lines + 12) + 20 * len(notes) + 90
    figure = Figure((len(columns) * (side + 10) / 100 + 1.6, height / 100), dpi=100, layout="constrained")
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    for label, pictures, texts, line in zip(labels, rows, captions, grid, strict=True):
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=11)
        for picture, text, axes in zip(pictures, texts, line, strict=True):
            axes.imshow(picture.convert("RGB"), interpolation="bicubic")
            axes.set(xticks=[], yticks=[])
            axes.set_xlabel(text, fontsize=9)
    for axes, text in zip(grid[0], columns, strict=True):
        width = side // CHARACTER - 3  # letters are larger here
        axes.set_title(wrapped(text, width), fontsize=10, color="#5a5a5a")
    figure.suptitle(title, fontsize=14, x=0.01, ha="left")
    figure.supxlabel("\n".join(notes), fontsize=9, x=0.01, ha="left", color="#5a5a5a")
    content = io.BytesIO()
    figure.savefig(
        content, format="png", bbox_inches="tight", pad_inches=0.15
    )  # text may be wider than the pictures
    return Image.open(content)


def wrapped(text: str, width: int) -> str:
    """The text with its lines broken at `width` characters."""
    return "\n".join(textwrap.fill(line, width) for line in text.splitlines())
