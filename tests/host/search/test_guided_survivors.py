"""A guided MODEL in a search: only the candidates that are left after the last look are guided."""

from __future__ import annotations

from typing import Any

import comfy.k_diffusion.sampling
import comfy.samplers
import pytest
import torch
from jepa_guidance.host.guidance.schedule import Schedule
from jepa_guidance.host.guidance.trace import GuidedStep

from jepa_core import RarityGradient
from tests.host.guidance.test_samplers_of_other_packs import SAMPLERS as OTHER_PACKS
from tests.host.guide import guide_model
from tests.host.search.conftest import CANDIDATES, COUNT, SAMPLING
from tests.host.search.test_search import batch, row_by_row

LAST_LOOK = 6  # of 10 steps with looks at 0.4 and 0.7


def guided(tiny: Any, model: Any, traces: list | None = None, start: float = 0.0, **settings: Any) -> Any:
    schedule = Schedule(2.0, start, 1.0)
    report = (lambda trace: traces.append(trace)) if traces is not None else (lambda trace: None)
    return guide_model(
        model, tiny.vae, tiny.encoder, schedule, RarityGradient(k=2), report=report, **settings
    )


@pytest.mark.parametrize(
    ("sampler_name", "one_call", "through"),
    [
        ("euler", True, False),
        ("uni_pc", False, False),
        ("euler_cfg_pp", False, True),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in (
                ("dpmpp_2m", True, False),
                ("euler_ancestral", False, False),
                ("euler", False, False),
                ("euler", False, True),
                ("euler", True, True),
                ("uni_pc", True, True),
                ("euler_cfg_pp", True, False),
                ("heun", False, True),
            )
        ),
    ],
)
def test_survivors_are_the_rows_of_a_batch_guided_from_there_on(
    tiny, stock, search, sampler_name, one_call, through
):
    """Guided alone as a batch, but from the step after the last look."""
    model = row_by_row(tiny.model)
    how = {"one_call": one_call, "through_denoiser": through}
    sampling = {"sampler_name": sampler_name}
    traces: list = []
    kept, _record = search(guided(tiny, model, traces, **how), sampling=sampling)
    steps = traces[-1].steps
    assert [isinstance(step, GuidedStep) for step in steps] == [
        step > LAST_LOOK for step in range(len(steps))
    ]
    assert all(len(step.score) == COUNT for step in steps[LAST_LOOK + 1 :])
    plain = stock(model, tiny, latent_image=batch(), **SAMPLING | sampling)
    assert not torch.allclose(kept["samples"], plain[kept["batch_index"]])
    # the same steps guided in a run of the whole batch
    late = guided(tiny, model, None, start=(LAST_LOOK + 1) / len(steps), **how)
    whole = stock(late, tiny, latent_image=batch(), **SAMPLING | sampling)
    torch.testing.assert_close(kept["samples"], whole[kept["batch_index"]], rtol=2e-3, atol=2e-3)


def test_guidance_of_the_model_itself_stays_as_it_was(tiny, stock, search):
    model = guided(tiny, tiny.model)
    before = stock(model, tiny, latent_image=batch(2), **SAMPLING)
    search(model)
    assert torch.equal(stock(model, tiny, latent_image=batch(2), **SAMPLING), before)


def test_a_search_without_looks_guides_every_candidate(tiny, search):
    traces: list = []
    search(guided(tiny, tiny.model, traces), looks=())
    assert all(len(step.score) == CANDIDATES for step in traces[-1].steps if step.guided)


def test_guidance_that_ends_before_the_last_look_guides_nothing(tiny, stock, search):
    schedule = Schedule(2.0, 0.0, 0.5)
    model = row_by_row(tiny.model)
    early = guide_model(model, tiny.vae, tiny.encoder, schedule, RarityGradient(k=2))
    kept, _ = search(early)
    drawn = stock(model, tiny, latent_image=batch(), **SAMPLING)
    assert torch.equal(kept["samples"], drawn[kept["batch_index"]])


@pytest.mark.parametrize("kind", ["restarts", "numbers from 1", "parts"])
def test_a_sampler_of_another_pack_searches_and_guides(tiny, stock, search, monkeypatch, kind):
    """Its steps are counted by its model calls, not by what it reports."""
    samplers = comfy.samplers.KSampler
    monkeypatch.setattr(samplers, "SAMPLERS", [*samplers.SAMPLERS, "theirs"])
    monkeypatch.setattr(comfy.k_diffusion.sampling, "sample_theirs", OTHER_PACKS[kind](), raising=False)
    model = row_by_row(tiny.model)
    sampling = {"sampler_name": "theirs"}
    kept, record = search(model, sampling=sampling)
    drawn = stock(model, tiny, latent_image=batch(), **SAMPLING | sampling)
    assert torch.equal(kept["samples"], drawn[kept["batch_index"]])
    assert record.done == record.steps == (11 if kind == "restarts" else 10)
    traces: list = []
    guided_kept, record = search(guided(tiny, model, traces), sampling=sampling)
    assert [step.step for step in traces[-1].steps] == list(range(record.steps))
    assert traces[-1].guided_steps
    assert not torch.allclose(guided_kept["samples"], drawn[guided_kept["batch_index"]])
