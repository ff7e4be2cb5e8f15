"""Groups of images as a sheet: a block of pictures for each."""

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .pictures import GAP, INK, LINE, PAPER, SIDE, paste_labelled, to_image

HEADING = 26  # text size, pixels
PICTURES = 3  # in a block, at most
ONE_COLUMN = 3  # blocks; more than these stand in two columns


class Block(NamedTuple):
    """A group: what stands above its pictures, the pictures (H, W, 3 or 4) and a label for each, PICTURES at most."""

    heading: str
    pictures: Sequence[Tensor]
    labels: Sequence[str]


def group_sheet(blocks: Sequence[Block]) -> Tensor:
    """The blocks from left to right and from top to bottom, (1, H, W, 3) in [0, 1]."""
    columns = 1 if len(blocks) <= ONE_COLUMN else 2
    lines = max(len(label.splitlines()) for block in blocks for label in block.labels)
    head = HEADING + GAP
    width, height = PICTURES * (SIDE + GAP) + GAP, head + SIDE + LINE * lines + 2 * GAP
    sheet = Image.new("RGB", (columns * width, -(-len(blocks) // columns) * height + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, block in enumerate(blocks):
        left, top = number % columns * width + GAP, number // columns * height + GAP
        draw.text((left, top), block.heading, fill=INK, font=ImageFont.load_default(HEADING))
        for place, (picture, label) in enumerate(zip(block.pictures, block.labels, strict=True)):
            paste_labelled(sheet, picture, label, left + place * (SIDE + GAP), top + head)
    return to_image(sheet)
