"""The trace of a guided run as a chart: score and novelty against step, with unguided steps in grey."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from ..guidance.trace import GuidedStep, Step, Trace
from ..options import NOVELTY, NOVELTY_JUDGE, SCORE
from .axes import (
    BIG,
    BOTTOM,
    COLOURS,
    LEFT,
    LEGEND_HEIGHT,
    NORMAL,
    RIGHT,
    TOP,
    WIDTH,
    nice_ticks,
    upright,
)
from .fonts import lettering
from .pictures import INK, PAPER

PANEL_HEIGHT = 520  # pixels
UNGUIDED = "#e4e4e4"
# Lines differ in their colours and in their marks.
MARKS = ("circle", "square", "triangle", "diamond", "circle", "square")
PALE = 0.7  # share of white in the colour of single images of a batch
AXES = {SCORE: "score (nats), lower is rarer", NOVELTY: "novelty, higher is rarer"}
TITLES = {SCORE: "JEPA score", NOVELTY: "Novelty"}


@dataclass(frozen=True)
class Line:
    """A curve: name, points (step, score), and whether it is drawn pale, as single images of a batch are."""

    name: str
    points: Sequence[tuple[float, float]]
    pale: bool = False


@dataclass(frozen=True)
class Panel:
    """One set of axes: its title, what the vertical axis shows, the lines, and values that the axis covers anyway."""

    title: str
    axis: str
    lines: Sequence[Line]
    covered: Sequence[float] = ()


def draw_trace(trace: Trace) -> Image.Image:
    """The chart of a trace, WIDTH pixels wide: a panel for each criterion, for each judge, and for the target."""
    guided = trace.guided_steps
    if not guided:
        return _message(trace.message())
    panels = [_of_guides(trace, guided, criterion) for criterion in _criteria(guided)]
    panels += [_of_judge(judge, guided) for judge in trace.judges]
    if pushes := [(step.step, step.push) for step in guided if step.push]:
        lines = _curves("mean", pushes, "share")
        panels.append(Panel("What the target left of the strength", "share, 0 is stopped", lines, (0, 1)))
    pictures = [_draw_panel(panel, trace.steps) for panel in panels]
    if trace.places:
        shares = trace.shares().items()
        texts = [f"By {name}, rarer than {', '.join(own)} of the reference." for name, own in shares]
        pictures.append(_written("\n".join(texts), BOTTOM))
    chart = Image.new("RGB", (WIDTH, sum(picture.height for picture in pictures)), PAPER)
    top = 0
    for picture in pictures:
        chart.paste(picture, (0, top))
        top += picture.height
    return chart


def _criteria(guided: Sequence[GuidedStep]) -> list[str]:
    """What was guided for. A score that is NaN throughout is no criterion, unless it is the only one."""
    novelty = any(step.novelty for step in guided)
    score = not novelty or any(math.isfinite(score) for step in guided for score in step.score)
    return [name for name, used in ((SCORE, score), (NOVELTY, novelty)) if used]


def _of_guides(trace: Trace, guided: Sequence[GuidedStep], criterion: str) -> Panel:
    several = len(trace.guides) > 1
    batches = [(step.step, step.score if criterion == SCORE else step.novelty) for step in guided]
    lines = _curves("mean of the guides" if several else "mean", batches, criterion)
    # the guides' own values are those of the first criterion
    if several and criterion == _criteria(guided)[0]:
        for guide in trace.guides:
            means = [(step.step, _mean(step.scores[guide])) for step in guided]
            lines.append(Line(guide, means))
    return Panel(f"{TITLES[criterion]} under the guide{'s' if several else ''}", AXES[criterion], lines)


def _of_judge(judge: str, guided: Sequence[GuidedStep]) -> Panel:
    criterion = NOVELTY if judge.endswith(NOVELTY_JUDGE) else SCORE
    lines = _curves("mean", [(step.step, step.judged[judge]) for step in guided], criterion)
    title = f"{TITLES[criterion]} under the judge {judge.removesuffix(NOVELTY_JUDGE)}"
    return Panel(title, AXES[criterion], lines)


def _curves(name: str, batches: Sequence[tuple[float, list[float]]], single: str = SCORE) -> list[Line]:
    """A pale line for each image of the batch, then their mean; a single line, called `single`, for a single image."""
    if len(batches[0][1]) == 1:
        return [Line(single if name == "mean" else name, [(step, scores[0]) for step, scores in batches])]
    images = range(len(batches[0][1]))
    lines = [Line("each image", [(step, scores[i]) for step, scores in batches], pale=True) for i in images]
    return [*lines, Line(name, [(step, _mean(scores)) for step, scores in batches])]


def _mean(scores: Sequence[float]) -> float:
    return sum(scores) / len(scores)


def _draw_panel(shown: Panel, steps: Sequence[Step]) -> Image.Image:
    """One set of axes: values over the sampler's steps, which are numbered from 1."""
    lines = shown.lines
    entries = {line.name: style for line, style in zip(lines, _styles(lines), strict=True)}
    legend = len(entries) * LEGEND_HEIGHT + 20 if len(entries) > 1 else 0
    panel = Image.new("RGB", (WIDTH, PANEL_HEIGHT + legend), PAPER)
    draw = ImageDraw.Draw(panel)
    normal = ImageFont.load_default(NORMAL)
    right, bottom = WIDTH - RIGHT, PANEL_HEIGHT - BOTTOM
    scores = [score for line in lines for _, score in line.points if math.isfinite(score)]
    scores += shown.covered
    ticks = nice_ticks(min(scores, default=0.0), max(scores, default=0.0), 5)
    low, high = ticks[0], ticks[-1]
    first, last = steps[0].step, steps[-1].step

    def across(step: float) -> float:
        return LEFT + (step - first + 0.5) / (last - first + 1) * (right - LEFT)

    def down(score: float) -> float:
        return bottom - (score - low) / (high - low) * (bottom - TOP)

    half = (right - LEFT) / (last - first + 1) / 2
    for step in steps:
        if not step.guided:
            x = across(step.step)
            draw.rectangle((x - half, TOP, x + half, bottom), fill=UNGUIDED)
    for tick in ticks:
        draw.line((LEFT, down(tick), right, down(tick)), fill="#cccccc", width=2)
        draw.text((LEFT - 12, down(tick)), f"{tick:g}", fill=INK, font=normal, anchor="rm")
    for number in shown_steps(first, last):
        draw.text((across(number), bottom + 10), str(number + 1), fill=INK, font=normal, anchor="ma")
    draw.rectangle((LEFT, TOP, right, bottom), outline=INK, width=2)
    title, big = lettering(shown.title, BIG)
    draw.text((LEFT, TOP - 14), title, fill=INK, font=big, anchor="ls")
    draw.text(
        ((LEFT + right) / 2, PANEL_HEIGHT - 12),
        "sampler step (grey: not guided)",
        fill=INK,
        font=normal,
        anchor="ms",
    )
    upright(panel, shown.axis, (36, (TOP + bottom) // 2), normal)
    _draw_lines(draw, lines, across, down)
    if legend:
        _draw_legend(draw, entries)
    return panel


def _styles(lines: Sequence[Line]) -> list[tuple[str, str, int]]:
    """Colour, mark and thickness of each line. Pale lines have the first full line's colour and no mark."""
    full = iter(zip(COLOURS * len(lines), MARKS * len(lines), strict=False))
    pale = _mixed(COLOURS[0])
    return [(pale, "", 3) if line.pale else (*next(full), 5) for line in lines]


def _draw_lines(
    draw: ImageDraw.ImageDraw,
    lines: Sequence[Line],
    across: Callable[[float], float],
    down: Callable[[float], float],
) -> None:
    for line, (colour, mark, thickness) in zip(lines, _styles(lines), strict=True):
        points = [(across(step), down(score)) for step, score in line.points if math.isfinite(score)]
        if len(points) > 1:
            draw.line(points, fill=colour, width=thickness, joint="curve")
        for x, y in points:
            _mark(draw, mark, x, y, colour)


def _draw_legend(draw: ImageDraw.ImageDraw, entries: Mapping[str, tuple[str, str, int]]) -> None:
    """The name of each line, below the axes."""
    for index, (name, (colour, mark, thickness)) in enumerate(entries.items()):
        y = PANEL_HEIGHT + LEGEND_HEIGHT * index + 10
        draw.line((LEFT, y, LEFT + 60, y), fill=colour, width=thickness)
        _mark(draw, mark, LEFT + 30, y, colour)
        shown, font = lettering(name, NORMAL)
        draw.text((LEFT + 76, y), shown, fill=INK, font=font, anchor="lm")


def _mark(draw: ImageDraw.ImageDraw, mark: str, x: float, y: float, colour: str) -> None:
    r = 8
    shapes = {
        "square": [(x - r, y - r), (x + r, y - r), (x + r, y + r), (x - r, y + r)],
        "triangle": [(x, y - r - 2), (x + r + 1, y + r), (x - r - 1, y + r)],
        "diamond": [(x, y - r - 3), (x + r + 3, y), (x, y + r + 3), (x - r - 3, y)],
    }
    if mark == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)
    elif mark in shapes:
        draw.polygon(shapes[mark], fill=colour)


def _mixed(colour: str) -> str:
    """A colour mixed with white."""
    parts = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return "#" + "".join(f"{round(part + (255 - part) * PALE):02x}" for part in parts)


def shown_steps(first: int, last: int, most: int = 12) -> list[int]:
    """The steps that are numbered under the axis, at most `most`."""
    stride = -(-(last - first + 1) // most)
    return list(range(first, last + 1, stride))


def _message(text: str) -> Image.Image:
    """The picture in place of a chart when nothing was guided."""
    return _written(text, PANEL_HEIGHT)


def _written(text: str, height: int) -> Image.Image:
    """Text, wrapped, in a picture that is at least `height` pixels high."""
    text, font = lettering(text, NORMAL)
    lines = "\n".join(textwrap.fill(line, 72) for line in text.splitlines())
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    bottom = draw.multiline_textbbox((60, 0), lines, font=font, spacing=10)[3]
    picture = Image.new("RGB", (WIDTH, max(height, round(bottom) + 60)), PAPER)
    ImageDraw.Draw(picture).multiline_text((60, 30), lines, fill=INK, font=font, spacing=10)
    return picture
