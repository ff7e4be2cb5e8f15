"""The chart of a trace: positions, colours, and text that is legible at half size."""

from __future__ import annotations

import math

import numpy as np
import pytest
from jepa_guidance.host.drawing import trace_chart
from jepa_guidance.host.drawing.trace_chart import draw_trace, nice_ticks, shown_steps
from jepa_guidance.host.guidance.trace import GuidedStep, Trace, UnguidedStep
from PIL import ImageDraw


def a_trace(scores: dict[int, list[float]], total: int, guides: tuple = ("g",), judges: tuple = ()) -> Trace:
    """A trace of `total` steps, guided where there are scores."""
    trace = Trace(guides=list(guides), judges=list(judges))
    for step in range(1, total + 1):
        if step not in scores:
            trace.add(UnguidedStep(step, 1.0))
            continue
        each = dict.fromkeys(guides, scores[step])
        judged = {name: [value / 2 for value in scores[step]] for name in judges}
        trace.add(GuidedStep(step, 1.0, scores[step], each, judged, gradient_norm=[], shift=[]))
    return trace


def a_novelty_trace(novelty: list[list[float]], guides: tuple = ("g",), judges: tuple = (), **more) -> Trace:
    """A trace of one step more than there are values, guided for novelty from the second step on."""
    trace = Trace(guides=list(guides), judges=list(judges), total=len(novelty) + 1)
    trace.add(UnguidedStep(0, 1.0))
    for step, values in enumerate(novelty, 1):
        scores = more.get("score", [[math.nan] * len(values)] * len(novelty))[step - 1]
        each = dict.fromkeys(guides, values)
        judged = {judge: [value / 2 for value in values] for judge in judges}
        push = more.get("push", [[]] * len(novelty))[step - 1]
        trace.add(GuidedStep(step, 1.0, scores, each, judged, [1.0], [1.0], novelty=values, push=push))
    return trace


def texts_of(monkeypatch: pytest.MonkeyPatch, trace: Trace) -> list[str]:
    """What is written into the chart."""
    written = []
    write = ImageDraw.ImageDraw.text

    def text(self, place, text, *args, **options):
        written.append(text)
        return write(self, place, text, *args, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    draw_trace(trace)
    return written


def places_of(chart: np.ndarray, colour: str) -> np.ndarray:
    """The pixels of a colour, (n, 2) rows and columns."""
    wanted = [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
    return np.argwhere((chart == wanted).all(-1))


def test_points_are_drawn_at_their_scores():
    chart = np.asarray(draw_trace(a_trace({3: [-10.0], 5: [-20.0]}, 6)))
    left, right = trace_chart.LEFT, trace_chart.WIDTH - trace_chart.RIGHT
    top, bottom = trace_chart.TOP, trace_chart.PANEL_HEIGHT - trace_chart.BOTTOM
    blue = places_of(chart, trace_chart.COLOURS[0])
    width = (right - left) / 6
    # ticks go from -20 to -10, so the first point is at the top and the last at the bottom
    first, last = blue[blue[:, 1].argmin()], blue[blue[:, 1].argmax()]
    assert first[1] == pytest.approx(left + 2.5 * width, abs=12)
    assert last[1] == pytest.approx(left + 4.5 * width, abs=12)
    assert first[0] == pytest.approx(top, abs=12)
    assert last[0] == pytest.approx(bottom, abs=12)


def test_unguided_steps_are_grey_and_guided_ones_are_not():
    chart = np.asarray(draw_trace(a_trace({3: [-10.0], 5: [-20.0]}, 6)))
    left, right = trace_chart.LEFT, trace_chart.WIDTH - trace_chart.RIGHT
    row = chart[trace_chart.TOP + 31]  # between two grid lines
    grey = [
        tuple(row[round(left + (step - 0.9) * (right - left) / 6)]) == (0xE4,) * 3 for step in range(1, 7)
    ]
    assert grey == [True, True, False, True, False, True]


def test_several_guides_images_and_judges_are_distinguishable():
    trace = a_trace({1: [-1.0, -2.0], 2: [-3.0, -5.0]}, 2, guides=("one", "two"), judges=("three",))
    picture = draw_trace(trace)
    chart = np.asarray(picture)
    # mean, first guide, second guide; the judge's panel, below, has another mean
    for colour in trace_chart.COLOURS[:3]:
        assert len(places_of(chart, colour)) > 100
    assert places_of(chart, trace_chart.COLOURS[0])[:, 0].max() > trace_chart.PANEL_HEIGHT + 200
    assert picture.height > 2 * trace_chart.PANEL_HEIGHT


def test_text_is_legible_at_512_pixels():
    chart = draw_trace(a_trace({1: [-100.0], 2: [-120.0]}, 2))
    small = np.asarray(chart.resize((512, chart.height // 2)).convert("L"))
    # the numbers of the vertical axis: tall enough, and dark on white
    labels = small[trace_chart.TOP // 2 + 20 :, 40 : trace_chart.LEFT // 2 - 4]
    dark = np.flatnonzero((labels < 110).any(1))
    runs = np.split(dark, np.flatnonzero(np.diff(dark) > 1) + 1)
    assert max(map(len, runs)) >= 8


def test_colours_differ_in_lightness_or_hue_for_the_colour_blind():
    def seen(colour: str) -> np.ndarray:
        """The colour as seen without green cones (the approximation of Vienot 1999)."""
        rgb = np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)]) / 255
        return (rgb**2.2) @ np.array([[0.2928, 0.2928, -0.0223], [0.7072, 0.7072, 0.0223], [0, 0, 1]])

    for index, one in enumerate(trace_chart.COLOURS[:4]):
        for other in trace_chart.COLOURS[index + 1 : 4]:
            assert np.abs(seen(one) - seen(other)).max() > 0.08, (one, other)


def test_a_run_without_guidance_says_so():
    trace = a_trace({}, 4)
    trace.instead = "nothing was guided " * 20
    chart = np.asarray(draw_trace(trace))
    assert chart.shape == (trace_chart.PANEL_HEIGHT, trace_chart.WIDTH, 3)
    assert (chart < 100).any()
    assert (chart[:, -20:] == 255).all()  # the text is wrapped


def test_a_novelty_trace_shows_novelty_and_no_score(monkeypatch):
    trace = a_novelty_trace([[0.2], [0.3], [0.45]], judges=("one (novelty)", "two"))
    chart = np.asarray(draw_trace(trace))
    blue = places_of(chart[: trace_chart.PANEL_HEIGHT], trace_chart.COLOURS[0])
    # higher is rarer: the line goes up, over the whole width of the guided steps
    first, last = blue[blue[:, 1].argmin()], blue[blue[:, 1].argmax()]
    assert last[0] < first[0] - 200
    assert chart.shape[0] == 3 * trace_chart.PANEL_HEIGHT
    written = texts_of(monkeypatch, trace)
    assert "Novelty under the guide" in written
    assert "Novelty under the judge one" in written
    assert "JEPA score under the judge two" in written
    assert written.count("novelty, higher is rarer") == 2
    assert written.count("score (nats), lower is rarer") == 1


def test_both_criteria_get_a_panel_each(monkeypatch):
    trace = a_novelty_trace([[0.2, 0.3]] * 3, score=[[-10.0, -20.0]] * 3)
    written = texts_of(monkeypatch, trace)
    assert {"JEPA score under the guide", "Novelty under the guide"} <= set(written)
    assert written.count("score (nats), lower is rarer") == written.count("novelty, higher is rarer") == 1


def test_several_guides_show_their_novelty():
    chart = np.asarray(draw_trace(a_novelty_trace([[0.2, 0.4], [0.3, 0.6]], guides=("one", "two"))))
    for colour in trace_chart.COLOURS[:3]:
        assert len(places_of(chart, colour)) > 100


def test_the_target_gets_a_panel_from_0_to_1_and_places_a_line(monkeypatch):
    trace = a_novelty_trace([[0.2, 0.2], [0.3, 0.3]], push=[[1.0, 1.0], [0.9, 0.8]])
    trace.places = [{"novelty": 4.0}, {"novelty": 60.0}]
    picture = draw_trace(trace)
    assert picture.height > 2 * trace_chart.PANEL_HEIGHT + 50
    written = texts_of(monkeypatch, trace)
    assert "What the target left of the strength" in written
    panel = written[written.index("What the target left of the strength") :]
    assert "share, 0 is stopped" in panel
    before = written[: written.index("What the target left of the strength")]
    assert {"0", "0.2", "1"} <= set(before[before.index("novelty, higher is rarer") :])
    assert (np.asarray(picture)[-trace_chart.BOTTOM :] < 100).any()
    assert trace_chart._places(trace.places) == ["By novelty, rarer than 96 %, 40 % of the reference."]


@pytest.mark.parametrize(
    "scores", [{1: [5.0]}, {1: [0.0], 2: [0.0]}, {1: [math.nan], 2: [-3.0]}, {2: [math.inf]}]
)
def test_odd_scores_are_drawn_or_left_out(scores):
    assert draw_trace(a_trace(scores, 3)).width == trace_chart.WIDTH


@pytest.mark.parametrize(
    ("low", "high"), [(-20, -10), (-616.3, -378.1), (0, 0), (1e-7, 3e-7), (-5, -5), (-0.3, 12345)]
)
def test_ticks_are_round_numbers_that_cover_the_data(low, high):
    ticks = nice_ticks(low, high, 5)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 7
    gaps = np.diff(ticks)
    np.testing.assert_allclose(gaps, gaps[0], rtol=1e-4)
    mantissa = gaps[0] / 10 ** math.floor(math.log10(gaps[0] * 1.000001))
    assert min(abs(mantissa - nice) for nice in (1, 2, 5, 10)) < 1e-3


def test_at_most_twelve_steps_are_numbered():
    assert shown_steps(1, 5) == [1, 2, 3, 4, 5]
    assert len(shown_steps(1, 1000)) <= 12
