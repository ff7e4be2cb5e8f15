"""The node's progress bar while guided steps run."""

from __future__ import annotations

import pytest
import torch
from jepa_guidance.host.guidance import progress
from jepa_guidance.host.guidance.progress import PARTS, StepProgress
from jepa_guidance.host.guidance.schedule import Schedule

from jepa_core import RarityGradient
from tests.host.guide import guide_model


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The positions of all progress bars, as fractions."""
    places: list[float] = []

    class Bar:
        def __init__(self, total: int) -> None:
            self.total = total

        def update_absolute(self, value: int) -> None:
            places.append(value / self.total)

    monkeypatch.setattr(progress, "ProgressBar", Bar)
    return places


def test_a_step_moves_the_bar_by_its_passes_relative_to_the_step_before(shown):
    bar = StepProgress(10, lambda step, passes: None)
    bar.begin(2)
    for _ in range(4):
        bar.passed()
    assert shown == []  # the number of passes is not known yet
    bar.begin(3)
    for _ in range(6):
        bar.passed()
    last = (3 * PARTS + PARTS - 1) / (10 * PARTS)  # more passes than expected stay within the step
    assert shown == pytest.approx([0.325, 0.35, 0.375, last, last, last])


def test_it_reports_the_passes_at_intervals(shown, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    reported = []
    bar = StepProgress(3, lambda step, passes: reported.append((step, passes)))
    bar.begin(1)
    for _ in range(20):
        now[0] += 0.125
        bar.passed()
    assert reported == [(1, 4), (1, 8), (1, 12), (1, 16), (1, 20)]


def test_a_guided_run_moves_the_bar_within_its_steps_only(tiny, stock, shown):
    """And never back, nor beyond the current step."""
    passes = []
    traces = []
    patched = guide_model(
        tiny.model,
        tiny.vae,
        tiny.encoder,
        Schedule(strength=1.0, start_percent=0.2, end_percent=1.0),
        RarityGradient(2, 1, 1),
        on_pass=lambda: passes.append(1),
        report=lambda trace: traces.append(len(trace.steps)),
    )
    stock(patched, tiny, steps=6)
    assert passes
    assert shown == sorted(shown)
    assert all(0 < place < 1 for place in shown)
    assert len(shown) > 3
    assert torch.tensor(traces).diff().min() >= 0
