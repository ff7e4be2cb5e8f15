"""Draw the pack's icon and banner for the Comfy Registry: many typical points, and an arm leading to a rare one.

    python dev.py run tools/artwork.py [--folder docs/artwork]

Each picture is a list of discs, arranged like the seeds of a sunflower and written as SVG and PNG. The colours are Okabe
and Ito's, which are distinct for every kind of colour vision.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]

NIGHT: Colour = (9, 20, 34)
# From the centre to the rim: the typical points, and the arm.
TYPICAL: list[Colour] = [(214, 238, 252), (86, 180, 233), (0, 114, 178), (0, 66, 110)]
RARE: list[Colour] = [(214, 238, 252), (240, 190, 90), (230, 159, 0), (213, 94, 0)]
GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))
# Supersampling of the PNG along each side.
SUPERSAMPLING = 4


@dataclass(frozen=True)
class Disc:
    """A disc: centre, radius, colour and opacity."""

    x: float
    y: float
    radius: float
    colour: Colour
    opacity: float = 1.0


def between(colours: list[Colour], share: float) -> Colour:
    """The colour at `share`, 0 to 1, of the way through evenly spaced colours."""
    place = min(max(share, 0.0), 1.0) * (len(colours) - 1)
    first = min(int(place), len(colours) - 2)
    a, b, c = (round(p + (q - p) * (place - first)) for p, q in zip(*colours[first : first + 2], strict=True))
    return a, b, c


@dataclass(frozen=True)
class Flower:
    """Seeds around (x, y), some of which form an arm.

    Attributes:
        spacing: distance between neighbours.
        count: number of seeds; some may be outside the picture.
        stride: step of the index along the arm; a Fibonacci number makes the seeds neighbours on a spiral.
        last: index of the arm's last seed.
        direction: of that seed from (x, y), in radians clockwise from the right.
    """

    x: float
    y: float
    spacing: float
    count: int
    stride: int
    last: int
    direction: float

    def place(self, index: int) -> tuple[float, float]:
        """The position of a seed."""
        radius = self.spacing * math.sqrt(index + 0.5) / math.sqrt(math.pi)
        angle = self.direction + (index - self.last) * GOLDEN_ANGLE
        return self.x + radius * math.cos(angle), self.y + radius * math.sin(angle)

    def on_arm(self, index: int) -> bool:
        return index <= self.last and (self.last - index) % self.stride == 0

    def discs(self, rare: float) -> list[Disc]:
        """All discs; the arm's last one has the radius `rare` and a glow, and discs too close to it are left out."""
        x, y = self.place(self.last)
        typical, arm = [], []
        for index in range(self.count):
            share = math.sqrt((index + 0.5) / self.count)
            here = self.place(index)
            if self.on_arm(index):
                way = math.sqrt((index + 0.5) / (self.last + 0.5))
                if math.dist(here, (x, y)) > rare + 0.42 * self.spacing:
                    arm.append(Disc(*here, self.spacing * 0.42, between(RARE, way)))
                continue
            size = self.spacing * (0.44 - 0.3 * share)
            if math.dist(here, (x, y)) > rare + size + 0.12 * self.spacing:
                typical.append(Disc(*here, size, between(TYPICAL, share), 1 - 0.45 * share**3))
        glow = [Disc(x, y, rare * (1 + 0.11 * ring), RARE[-1], 0.022) for ring in range(18, 0, -1)]
        return [*glow, *typical, *arm, Disc(x, y, rare, RARE[-1])]


def icon(side: int) -> list[Disc]:
    """The discs of a square icon."""
    u = side / 100
    return Flower(44 * u, 57 * u, 9.6 * u, 118, 13, 99, math.radians(-45)).discs(9.5 * u)


def banner(width: int, height: int) -> list[Disc]:
    """The discs of a wide banner."""
    u = height / 100
    return Flower(68 * u, 60 * u, 7.3 * u, 1480, 89, 1040, math.radians(-17)).discs(8.5 * u)


def as_svg(discs: list[Disc], width: int, height: int) -> str:
    """The picture as SVG, without discs outside it."""
    lines = [
        f'<circle cx="{d.x:.2f}" cy="{d.y:.2f}" r="{d.radius:.2f}" fill="#{bytes(d.colour).hex()}"'
        f' fill-opacity="{d.opacity:.3f}"/>'
        for d in discs
        if -d.radius < d.x < width + d.radius and -d.radius < d.y < height + d.radius
    ]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
    ground = f'<rect width="{width}" height="{height}" fill="#{bytes(NIGHT).hex()}"/>'
    return "\n".join([head, ground, *lines, "</svg>", ""])


def as_image(discs: list[Disc], width: int, height: int) -> Image.Image:
    """The picture as pixels."""
    picture = Image.new("RGB", (width * SUPERSAMPLING, height * SUPERSAMPLING), NIGHT)
    for d in discs:
        x, y, radius = (SUPERSAMPLING * value for value in (d.x, d.y, d.radius))
        corner, side = (math.floor(x - radius), math.floor(y - radius)), math.ceil(2 * radius) + 2
        left, top = x - radius - corner[0], y - radius - corner[1]
        mask = Image.new("L", (side, side))
        box = (left, top, left + 2 * radius, top + 2 * radius)
        ImageDraw.Draw(mask).ellipse(box, fill=round(255 * d.opacity))
        picture.paste(d.colour, (*corner, corner[0] + side, corner[1] + side), mask)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def pictures() -> dict[str, tuple[list[Disc], int, int]]:
    """Discs, width and height of each picture, by its name. The registry takes icons up to 800 x 400 pixels."""
    return {"icon": (icon(400), 400, 400), "banner": (banner(1260, 540), 1260, 540)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    default = Path(__file__).resolve().parents[1] / "docs" / "artwork"
    parser.add_argument("--folder", type=Path, default=default)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures().items():
        (folder / f"{name}.svg").write_text(as_svg(*picture), encoding="utf-8")
        as_image(*picture).save(folder / f"{name}.png", optimize=True)
        print(f"wrote {folder / name}.svg and .png")


if __name__ == "__main__":
    main()
