"""The compared methods on tiny models of several families: UNet, flow transformers, pixels, a still of a video model."""

from __future__ import annotations

import pytest
from jepa_guidance.host.guidance.self_guided import apply_self_guidance, self_guided_schedule
from jepa_guidance.host.variety.cads import Cads
from jepa_guidance.host.variety.patch import apply_boost, apply_cads

from tests.host.guidance.test_families import family_of, sample

NAMES = ("sd15", "sdxl", "sd3", "flux", "wan_still")
METHODS = {
    "boost": lambda model, traces: apply_boost(model, 1.5),
    "cads": lambda model, traces: apply_cads(model, Cads(scale=0.5), 3),
    "self-guided": lambda model, traces: apply_self_guidance(
        model, self_guided_schedule(1.0, 1), 0.8, report=traces.append
    ),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_finite_and_not_the_stock_samplers(name, method):
    family, traces = family_of(name), []
    found = sample(family, METHODS[method](family.model, traces))
    assert found.isfinite().all()
    assert (found - sample(family)).abs().max() > 1e-4
    assert not any(notice for trace in traces for notice in trace.notices)
