"""The chart of many images: the front against brute force, positions, colours, and labels that do not collide."""

from __future__ import annotations

import math

import numpy as np
import pytest
from jepa_guidance.host.drawing.axes import BOTTOM, LEFT, TOP, WIDTH
from jepa_guidance.host.drawing.labels import place_labels
from jepa_guidance.host.drawing.rarity_chart import (
    BELOW,
    FRONT,
    HEIGHT,
    KEPT,
    OTHER,
    draw_rarity,
    front,
)
from jepa_guidance.host.options import NOVELTY, SCORE
from PIL import ImageDraw

NAN = math.nan


def undominated(rarities: list[float], qualities: list[float]) -> set[int]:
    """The front by comparing every image with every other."""
    images = [(r, q) for r, q in zip(rarities, qualities, strict=True)]
    return {
        index
        for index, (r, q) in enumerate(images)
        if not math.isnan(r + q)
        and not any(other >= r and good >= q and (other > r or good > q) for other, good in images)
    }


def pixels_of(chart: np.ndarray, colour: str) -> np.ndarray:
    """The pixels of a colour between the axes, (n, 2) rows and columns."""
    wanted = [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
    return np.argwhere((chart[TOP : HEIGHT - BOTTOM, LEFT:] == wanted).all(-1))


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written into charts from now on."""
    texts: list[str] = []
    write = ImageDraw.ImageDraw.text

    def text(self, place, text, *args, **options):
        texts.append(text)
        return write(self, place, text, *args, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return texts


@pytest.mark.parametrize("seed", range(30))
def test_the_front_is_what_no_image_exceeds(seed):
    random = np.random.default_rng(seed)
    count = int(random.integers(1, 40))
    # few different numbers, so that many are equal; some are missing
    values = random.integers(0, 12, size=(2, count)).astype(float)
    values[random.random((2, count)) < 0.1] = NAN
    rarities, qualities = values.tolist()
    found = front(rarities, qualities)
    assert sorted(found) == sorted(undominated(rarities, qualities))
    assert [rarities[index] for index in found] == sorted(rarities[index] for index in found)


def test_infinite_numbers_have_their_place_in_the_front():
    assert front([math.inf, 0, -math.inf], [-math.inf, 1, 2]) == [2, 1, 0]
    assert front([NAN], [1.0]) == []


@pytest.mark.parametrize("by", [SCORE, NOVELTY])
def test_rarer_is_to_the_right_and_better_is_up(by):
    rare, usual = (-80.0, -20.0) if by == SCORE else (80.0, 20.0)
    picture = draw_rarity([usual, rare], [1], by=by, qualities=[0.9, 0.1])
    chart = np.asarray(picture)
    assert picture.width == WIDTH
    kept, other = pixels_of(chart, KEPT).mean(0), pixels_of(chart, FRONT).min(0)
    assert kept[1] > other[1]  # the rare one, which is kept, is further right
    assert kept[0] > other[0]  # and lower


@pytest.mark.parametrize("by", [SCORE, NOVELTY])
def test_without_qualities_the_rarest_is_first_and_on_top(by):
    values = [3.0, 1.0, 2.0]
    rarest = 1 if by == SCORE else 0
    chart = np.asarray(draw_rarity(values, [rarest], by=by))
    kept, others = pixels_of(chart, KEPT).mean(0), pixels_of(chart, OTHER)
    assert kept[1] < others[:, 1].min()
    assert kept[0] < others[:, 0].min()
    assert not len(pixels_of(chart, FRONT))


def test_images_below_the_floor_are_grey_and_not_in_the_front(written):
    # the rarest two are below the floor
    chart = np.asarray(draw_rarity([1, 2, 3, 4], [], by=SCORE, qualities=[0.1, 0.2, 0.6, 0.5], floor=0.4))
    assert len(pixels_of(chart, BELOW))
    grey, green = pixels_of(chart, BELOW), pixels_of(chart, FRONT)
    assert grey[:, 1].min() > green[:, 1].max()
    assert {"floor 0.4", "below the floor"} <= set(written)
    assert all(text.isascii() for text in written)


def test_a_floor_far_below_all_images_leaves_them_their_room(written):
    chart = np.asarray(draw_rarity([1, 2], [0], by=SCORE, qualities=[0.4, 0.6], floor=-1e6))
    assert "floor -1e+06, lower than the axis" in written
    rows = np.concatenate([pixels_of(chart, KEPT), pixels_of(chart, FRONT)])[:, 0]
    assert np.ptp(rows) > 300


def test_numbers_that_are_not_finite_are_counted(written):
    draw_rarity([NAN, 1, 2, math.inf], [1, 0], by=SCORE, qualities=[1, NAN, 0.5, 1])
    assert "3 not drawn: not a number, or too large" in written


@pytest.mark.parametrize("qualities", [[], [0.5] * 500])
@pytest.mark.parametrize("count", [0, 1, 2, 500])
def test_any_number_of_images_can_be_drawn(count, qualities):
    for values in ([1.0] * count, [NAN] * count, list(range(count))):
        picture = draw_rarity(values, range(min(count, 4)), by=SCORE, qualities=qualities[:count])
        assert picture.width == WIDTH


def test_labels_do_not_collide():
    random = np.random.default_rng(1)
    dots = {index: tuple(place) for index, place in enumerate((random.random((500, 2)) * 400).tolist())}
    named = list(range(60))
    boxes = {
        index: (x, y, x + 30, y + 20)
        for index, (x, y) in place_labels(dots, dict.fromkeys(named, (30, 20)), (0, 0, 400, 400), 8).items()
    }
    assert 0 in boxes
    assert 20 < len(boxes) < 60
    for index, (left, top, right, bottom) in boxes.items():
        assert min(left, top) >= 0
        assert max(right, bottom) <= 400
        x, y = dots[index]
        assert max(abs((left + right) / 2 - x), abs((top + bottom) / 2 - y)) < 30
        for other in boxes.keys() - {index}:
            a, b, c, d = boxes[other]
            assert right <= a or c <= left or bottom <= b or d <= top


@pytest.mark.parametrize("count", [1, 2, 7, 24, 500])
def test_only_numbers_of_images_stand_below_the_axis(written, count):
    draw_rarity([0.5] * count, [], by=SCORE)
    ranks = [text for text in written if text.isdigit() and text != "0"]
    assert ranks
    assert all(1 <= int(rank) <= count for rank in ranks)


@pytest.mark.parametrize(
    "numbers",
    [
        [1e308, -1e308, 1.0],
        [1.0, math.nextafter(1.0, 2)],
        [1e-7, 3e-7],
        [5e-324, 0.0],
        [1e17, 1e17 + 16],
        [-1e99, 1e99],
        [math.inf, -math.inf],
    ],
)
def test_numbers_of_any_size_are_drawn(numbers):
    others = [0.5] * len(numbers)
    for by in ("score", "novelty"):
        draw_rarity(numbers, [0], by=by)
        draw_rarity(numbers, [0], by=by, qualities=others, floor=0.5)
        draw_rarity(others, [0], by=by, qualities=numbers, floor=min(numbers))
