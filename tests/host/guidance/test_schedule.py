"""Which steps are guided and how far they move, compared with hand-written tables."""

from __future__ import annotations

import math

import pytest
import torch
from jepa_guidance.host.guidance.schedule import (
    Schedule,
    latent_scale,
    normalise,
    posterior_variance,
    signal_rate,
)


@pytest.mark.parametrize(
    ("start", "end", "interval", "total", "expected"),
    [
        (0.2, 1.0, 1, 10, [2, 3, 4, 5, 6, 7, 8, 9]),
        (0.2, 1.0, 1, 4, [1, 2, 3]),  # the paper's three guided steps of four
        (0.0, 1.0, 3, 10, [0, 3, 6, 9]),
        (0.3, 0.7, 1, 10, [3, 4, 5, 6]),
        (0.5, 0.5, 1, 10, []),
        (0.9, 1.0, 2, 10, []),
        (0.0, 1.0, 1, 1, [0]),
    ],
)
def test_guided_steps(start, end, interval, total, expected):
    schedule = Schedule(start_percent=start, end_percent=end, interval=interval)
    assert schedule.guided_steps(total) == expected


def test_strength_is_the_published_one_at_three_guided_steps_and_spreads_over_more():
    schedule = Schedule(strength=0.5)
    assert [schedule.step_strength(n) for n in (1, 3, 6, 30)] == [0.5, 0.5, 0.25, 0.05]
    assert Schedule(strength=0.5, strength_rule="per_step").step_strength(30) == 0.5


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"start_percent": 0.8, "end_percent": 0.2}, "start_percent 0.8"),
        ({"start_percent": -0.1}, "-0.1"),
        ({"end_percent": 1.5}, "1.5"),
        ({"interval": 0}, "interval"),
        ({"strength": math.nan}, "strength"),
        ({"strength": math.inf}, "strength"),
    ],
)
def test_invalid_schedules_are_refused_by_name(settings, named):
    with pytest.raises(ValueError, match=named):
        Schedule(**settings)


SIGMA = torch.tensor(2.0)


@pytest.mark.parametrize(
    ("kind", "scale", "rate"),
    [
        ("EPS", math.sqrt(5), 1 / 5),
        ("V_PREDICTION", math.sqrt(5), 1 / 5),
        ("EDM", math.sqrt(4 + 0.25), 1 / 5),
    ],
)
def test_scale_and_signal_rate_of_variance_exploding_samplings(tiny, kind, scale, rate):
    sampling = tiny.make_model(kind).model.model_sampling
    if kind == "EDM":
        sampling.set_parameters(0.002, 120.0, 0.5)
    assert latent_scale(sampling, SIGMA) == pytest.approx(scale, rel=1e-6)
    assert signal_rate(sampling, SIGMA) == pytest.approx(rate, rel=1e-6)


def test_scale_and_signal_rate_of_flow(tiny):
    sampling = tiny.make_model("FLOW").model.model_sampling
    t = torch.tensor(0.25)
    assert latent_scale(sampling, t) == pytest.approx(1.0)
    assert signal_rate(sampling, t) == pytest.approx(0.75**2 / (0.75**2 + 0.25**2), rel=1e-6)


def test_posterior_variance_is_the_formula_and_zero_at_the_last_step():
    abar, abar_prev = 0.3, 0.6
    beta = 1 - abar / abar_prev
    assert posterior_variance(abar, abar_prev) == pytest.approx(beta * (1 - abar_prev) / (1 - abar))
    assert posterior_variance(0.99, 1.0) == 0.0


def test_normalisation_is_per_sample_and_leaves_zero_alone():
    gradient = torch.tensor([[3.0, -4.0], [0.0, 0.0], [0.1, 0.2]])[:, :, None, None]
    assert normalise(gradient, "max").flatten(1).abs().amax(1).tolist() == pytest.approx([1.0, 0.0, 1.0])
    assert normalise(gradient, "rms")[0].square().mean().item() == pytest.approx(1.0)
    assert torch.equal(normalise(gradient, "none"), gradient)
