"""Many images as a chart: how rare each is, and how good, with the kept ones and the front marked."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from PIL import Image, ImageDraw, ImageFont

from ..options import NOVELTY, SCORE
from ..scoring.floor import above
from .axes import BIG, BOTTOM, COLOURS, LEFT, LEGEND_HEIGHT, NORMAL, RIGHT, TOP, WIDTH, nice_ticks, upright
from .labels import Box, Place, place_labels
from .pictures import INK, PAPER

HEIGHT = 720  # of the axes with their texts, pixels
OTHER, KEPT, FRONT = COLOURS[:3]
BELOW, GRID = "#a0a0a0", "#dddddd"
KEPT_RADIUS, LABEL = 11, 23  # of kept images; text size of an image's index
MANY = 100  # with more images, their dots are smaller
LARGEST = 1e100  # number on an axis
UNITS = {SCORE: "score (nats)", NOVELTY: "novelty"}


@dataclass(frozen=True)
class Axis:
    """An axis with numbers from `low` at pixel `start` to `high` at pixel `end`; `low` may be the larger number."""

    title: str
    ticks: Sequence[float]
    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


@dataclass(frozen=True)
class Plot:
    """What a chart shows.

    Attributes:
        places: of each image that is drawn, by its index, its pixel (x, y).
        kept: indices, the most important first. front: indices, from left to right.
        below: indices of the images below the floor. floor: -inf if there is none.
    """

    title: str
    across: Axis
    up: Axis
    places: Mapping[int, Place]
    kept: Sequence[int]
    front: Sequence[int] = ()
    below: Collection[int] = ()
    floor: float = -math.inf

    @property
    def radius(self) -> int:
        """Of the dots of images that are not kept, in pixels."""
        return 8 if len(self.places) <= MANY else 5


def front(rarities: Sequence[float], qualities: Sequence[float]) -> list[int]:
    """The Pareto front: the images than which no other is at least as rare and as good, and more in one of both.

    Args:
        rarities: higher is rarer. qualities: higher is better. Images with NaN are never in the front.

    Returns:
        Indices, from the least rare to the rarest. Images that are alike in both are all in it.
    """
    pairs = enumerate(zip(rarities, qualities, strict=True))
    numbers = [index for index, pair in pairs if not any(map(math.isnan, pair))]
    numbers.sort(key=lambda index: (-rarities[index], -qualities[index], -index))
    found: list[int] = []
    for _, same in groupby(numbers, key=rarities.__getitem__):
        alike = list(same)
        best = qualities[alike[0]]
        if not found or best > qualities[found[-1]]:
            found += [index for index in alike if qualities[index] == best]
    return found[::-1]


def draw_rarity(
    values: Sequence[float],
    kept: Sequence[int],
    *,
    by: str,
    qualities: Sequence[float] = (),
    floor: float = -math.inf,
) -> Image.Image:
    """The chart of some images, WIDTH pixels wide.

    Without qualities: the images in the order of their rarity. With them: rarity against quality, the floor, and the Pareto
    front of the images that reach it.

    Args:
        values: scores or novelties, as `by` says. Images with a number that no axis can show are counted, not drawn.
        kept: indices of the kept images, the most important first.
        qualities: one for each image, higher is better; or none.
        floor: the least quality; -inf for none.
    """
    others = qualities or [0.0] * len(values)
    shown = {
        index: pair
        for index, pair in enumerate(zip(values, others, strict=True))
        if all(abs(number) < LARGEST for number in pair)
    }
    drawn = [index for index in kept if index in shown]
    if qualities:
        plot = _beside_quality(shown, drawn, by, floor)
    else:
        plot = _in_order({index: value for index, (value, _) in shown.items()}, drawn, by)
    return _draw(plot, missing=len(values) - len(shown))


def _in_order(values: Mapping[int, float], kept: Sequence[int], by: str) -> Plot:
    """The images from the rarest to the most typical."""
    order = sorted(values, key=values.__getitem__, reverse=by == NOVELTY)
    last = max(1, len(order))
    ticks = [tick for tick in nice_ticks(0, last, 8) if 1 <= tick <= last and tick == int(tick)]
    across = Axis("images, the rarest first", ticks, 0.5, last + 0.5, LEFT, WIDTH - RIGHT)
    up = _axis(f"{UNITS[by]}, rarer upwards", values.values(), HEIGHT - BOTTOM, TOP, falling=by == SCORE)
    places = {index: (across(rank), up(values[index])) for rank, index in enumerate(order, 1)}
    return Plot("Rarity of each image", across, up, places, kept)


def _beside_quality(shown: Mapping[int, Place], kept: Sequence[int], by: str, floor: float) -> Plot:
    """Rarity against quality, from the pair of both that each image has."""
    values, qualities = [value for value, _ in shown.values()], [quality for _, quality in shown.values()]
    rarities = [-value for value in values] if by == SCORE else values
    passes = dict(zip(shown, above(qualities, floor), strict=True))
    best = [list(shown)[number] for number in front(rarities, qualities)]
    across = _axis(f"{UNITS[by]}, rarer to the right", values, LEFT, WIDTH - RIGHT, falling=by == SCORE)
    # a floor far below all images would leave no room for them
    spread = max(qualities, default=0.0) - min(qualities, default=0.0)
    near = [floor] if min(qualities, default=0.0) - spread <= floor else []
    up = _axis("quality, better upwards", [*qualities, *near], HEIGHT - BOTTOM, TOP)
    return Plot(
        "Rarity and quality of each image",
        across,
        up,
        {index: (across(value), up(quality)) for index, (value, quality) in shown.items()},
        kept,
        [index for index in best if passes[index]],
        [index for index in shown if not passes[index]],
        floor,
    )


def _axis(title: str, values: Collection[float], start: float, end: float, *, falling: bool = False) -> Axis:
    """An axis that covers the values; `falling` if its numbers fall from start to end."""
    ticks = nice_ticks(min(values, default=0.0), max(values, default=0.0), 6)
    low, high = (ticks[-1], ticks[0]) if falling else (ticks[0], ticks[-1])
    return Axis(title, ticks, low, high, start, end)


def _draw(plot: Plot, missing: int) -> Image.Image:
    entries = _legend(plot, missing)
    chart = Image.new("RGB", (WIDTH, HEIGHT + LEGEND_HEIGHT * len(entries) + 30), PAPER)
    draw = ImageDraw.Draw(chart)
    _draw_axes(chart, draw, plot)
    frame = (plot.across.start, plot.up.end, plot.across.end, plot.up.start)
    if plot.up.low <= plot.floor <= plot.up.high:
        y = plot.up(plot.floor)
        draw.line((frame[0], y, frame[2], y), fill=INK, width=3)
    corners = [plot.places[index] for index in plot.front]
    for (x, y), (right, lower) in pairwise(corners):
        # what no image exceeds: up to the next one's rarity, its quality
        draw.line((x, y, x, lower, right, lower), fill=FRONT, width=4)
    for index in plot.places:
        if index not in plot.kept:
            _draw_dot(draw, plot, index)
    for index in reversed(plot.kept):
        _draw_dot(draw, plot, index)
    _draw_labels(draw, plot, frame)
    font = ImageFont.load_default(NORMAL)
    for row, (text, mark, colour) in enumerate(entries):
        y = HEIGHT + LEGEND_HEIGHT * row + 20
        if mark == "line":
            draw.line((LEFT, y, LEFT + 60, y), fill=colour, width=4)
        elif mark:
            _dot(draw, LEFT + 30, y, 8, colour, full=mark == "full")
        draw.text((LEFT + 76, y), text, fill=INK, font=font, anchor="lm")
    return chart


def _draw_axes(chart: Image.Image, draw: ImageDraw.ImageDraw, plot: Plot) -> None:
    """Grid, numbers and titles."""
    across, up = plot.across, plot.up
    normal = ImageFont.load_default(NORMAL)
    for tick in up.ticks:
        draw.line((across.start, up(tick), across.end, up(tick)), fill=GRID, width=2)
        draw.text((across.start - 12, up(tick)), f"{tick:g}", fill=INK, font=normal, anchor="rm")
    for tick in across.ticks:
        draw.line((across(tick), up.start, across(tick), up.start + 8), fill=INK, width=2)
        draw.text((across(tick), up.start + 10), f"{tick:g}", fill=INK, font=normal, anchor="ma")
    draw.rectangle((across.start, up.end, across.end, up.start), outline=INK, width=2)
    draw.text((across.start, TOP - 14), plot.title, fill=INK, font=ImageFont.load_default(BIG), anchor="ls")
    middle = (across.start + across.end) / 2
    draw.text((middle, HEIGHT - 12), across.title, fill=INK, font=normal, anchor="ms")
    upright(chart, up.title, (36, round((up.start + up.end) / 2)), normal)


def _draw_dot(draw: ImageDraw.ImageDraw, plot: Plot, index: int) -> None:
    kept = index in plot.kept
    colour = FRONT if index in plot.front else BELOW if index in plot.below else OTHER
    _dot(draw, *plot.places[index], KEPT_RADIUS if kept else plot.radius, KEPT if kept else colour, full=kept)


def _dot(draw: ImageDraw.ImageDraw, x: float, y: float, r: int, colour: str, *, full: bool) -> None:
    """A disc with a white edge, or a ring."""
    box = (x - r, y - r, x + r, y + r)
    draw.ellipse(
        box, fill=colour if full else None, outline=PAPER if full else colour, width=1 if full else 3
    )


def _draw_labels(draw: ImageDraw.ImageDraw, plot: Plot, frame: Box) -> None:
    """The indices of the kept images and of the front."""
    font = ImageFont.load_default(LABEL)
    named = dict.fromkeys([*plot.kept, *plot.front])

    def size(index: int) -> Place:
        return font.getbbox(str(index))[2:]

    placed = place_labels(plot.places, {index: size(index) for index in named}, frame, KEPT_RADIUS)
    for index, place in placed.items():
        draw.text(place, str(index), fill=INK, font=font, stroke_width=2, stroke_fill=PAPER)


def _legend(plot: Plot, missing: int) -> list[tuple[str, str, str]]:
    """Of each line below the axes, its text, its mark and the colour of that."""
    floor = f"floor {plot.floor:.4g}" + (", lower than the axis" if plot.floor < plot.up.low else "")
    plain = plot.places.keys() - {*plot.kept, *plot.front, *plot.below}
    rows = [
        (f"kept, with index ({len(plot.kept)} of {len(plot.places) + missing})", "full", KEPT, plot.kept),
        ("not kept", "ring", OTHER, plain),
        ("front: no other image is both rarer and better", "line", FRONT, plot.front),
        (floor, "line", INK, [plot.floor] if plot.floor > -math.inf else []),
        ("below the floor", "ring", BELOW, plot.below),
        (f"{missing} not drawn: not a number, or too large", "", INK, range(missing)),
    ]
    return [(text, mark, colour) for text, mark, colour, those in rows if those]
