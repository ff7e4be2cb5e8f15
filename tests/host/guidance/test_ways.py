"""Every way to save memory gives the same image, with batches, masks and conditions; and a batch of images one by one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from jepa_guidance.host.gradient import chain
from jepa_guidance.host.gradient.ways import THROUGH
from jepa_guidance.host.memory.plan import MemoryPlan

from tests.combinations import covering
from tests.host.families import numbers
from tests.host.guidance import test_conditions as conditions
from tests.host.guidance.test_families import encoder_of, family_of, guided, sample

FIRST = replace(THROUGH, estimate_first=True)
SINGLY = replace(FIRST, one_by_one=True)
WAYS = {
    "estimate first": FIRST,
    "one by one": SINGLY,
    "checkpointing": replace(THROUGH, checkpointing=True),
    "all of it": replace(SINGLY, checkpointing=True, one_direction=True),
}
CASES = (
    *((name, conditions.batch_of_three) for name in ("sd15", "flux", "sd3", "wan_still")),
    *(("sd15", condition) for condition in (conditions.areas, conditions.lora, conditions.differential)),
)


@pytest.fixture
def taken(monkeypatch):
    """Has every run take one way; returns how often the denoiser was pulled, and on how many images at a time."""

    def take(way: Any) -> list[int]:
        # not if the denoiser is held constant
        monkeypatch.setattr(
            MemoryPlan, "best", lambda plan: way if plan._ways[0].through_denoiser else plan._ways[0]
        )
        pulled: list[int] = []
        stock = chain.LatentGradient._pulled

        def counted(own: Any, denoise: Any, x: Any, *args: Any) -> Any:
            pulled.append(len(x))
            return stock(own, denoise, x, *args)

        monkeypatch.setattr(chain.LatentGradient, "_pulled", counted)
        return pulled

    return take


def image_of(name: str, condition: Any, **more: Any) -> tuple[torch.Tensor, Any]:
    family = family_of(name)
    model, settings = condition(family)
    reports: list[Any] = []
    patched = guided(
        family, encoder_of(), model=model, through_denoiser=True, one_call=True, report=reports.append, **more
    )
    return sample(family, patched, **settings | {"steps": 3}), reports[-1]


def named(value: Any) -> str | None:
    return value if isinstance(value, str) else f"{value[0]}-{value[1].__name__}"


@pytest.mark.parametrize(("case", "kind"), covering(CASES, list(WAYS)), ids=named)
def test_the_image_is_the_same(case, kind, taken):
    plain, trace = image_of(*case)
    way = WAYS[kind]
    pulled = taken(way)
    found, saving = image_of(*case)
    size = len(plain)
    assert pulled == ([1] * size if way.one_by_one else [size]) * len(trace.guided_steps)
    # rounding of the gradient, which strong tiny networks amplify
    family = family_of(case[0])
    model, settings = case[1](family)
    moved = (plain - sample(family, model, **settings | {"steps": 3})).abs().max()
    assert moved > 0
    # of the encoder's differences too, if their passes are divided
    assert (found - plain).abs().max() < (0.1 if way.one_direction else 0.02) * moved
    assert torch.allclose(
        torch.tensor([step.score for step in saving.guided_steps]),
        torch.tensor([step.score for step in trace.guided_steps]),
        rtol=1e-3,
    )


def test_images_that_depend_on_their_batch_are_differentiated_together(taken):
    """A patch that mixes the images of a batch, as batch-aware attention does."""

    def mixing(family: Any) -> Any:
        model, settings = conditions.batch_of_three(family)
        model = model.clone()
        model.set_model_sampler_post_cfg_function(lambda args: args["denoised"] + args["denoised"].mean(0))
        return model, settings

    plain, trace = image_of("sd15", mixing)
    pulled = taken(SINGLY)
    found, _ = image_of("sd15", mixing)
    steps = len(trace.guided_steps)
    # the first image alone shows it; from then on, all together
    assert pulled == [1, 3] + [3] * (steps - 1)
    assert torch.equal(found, plain)


def test_conditioning_with_a_row_for_each_image_is_divided(taken):
    def rows(family: Any) -> Any:
        model, settings = conditions.batch_of_three(family)
        positive = [[numbers(60, 3, 3, 8), {}]]
        return model, settings | {"positive": positive}

    plain, _ = image_of("sd15", rows)
    pulled = taken(SINGLY)
    found, _ = image_of("sd15", rows)
    assert set(pulled) == {1}
    assert (found - plain).abs().max() < 1e-3 * plain.abs().max()


def test_the_gradient_is_checked_with_one_image(taken):
    """The check compares the first image's denoiser; a wrong gradient is found in every way."""
    taken(SINGLY)
    family = family_of("sd15")
    model = family.model.clone()

    class Cut(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, cotangent):
            return 0 * cotangent

    def cut(args: dict) -> torch.Tensor:
        return args["input"] - Cut.apply(args["input"] - args["denoised"])

    def wrong(_: Any) -> Any:
        model.set_model_sampler_post_cfg_function(cut)
        return model, {"latent_image": {"samples": numbers(61, 2, *family.latent["samples"].shape[1:])}}

    _, trace = image_of("sd15", wrong)
    assert any("denoiser constant" in notice for notice in trace.notices)


def test_an_interrupted_run_in_the_sparing_ways_leaves_the_conditioning_as_it_was(taken):
    taken(SINGLY)
    seen = []

    def stop() -> None:
        seen.append(1)
        if len(seen) == 5:
            raise KeyboardInterrupt

    family = family_of("sd15")
    model, settings = conditions.batch_of_three(family)
    patched = guided(family, encoder_of(), model=model, through_denoiser=True, on_pass=stop)
    with pytest.raises(KeyboardInterrupt):
        sample(family, patched, **settings | {"steps": 3})
    assert torch.equal(
        sample(family, model, **settings | {"steps": 3}), sample(family, model, **settings | {"steps": 3})
    )
