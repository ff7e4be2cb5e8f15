"""Models that guidance cannot differentiate, patches of other nodes, and memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import comfy.model_base
import comfy.model_patcher
import comfy.sampler_helpers
import pytest
import torch
from comfy_extras import nodes_apg, nodes_easycache
from jepa_guidance.host.comfy.memory import room_beside
from jepa_guidance.host.search.rows_model import rows_that_fit

from tests.host.conftest import UNET, TinyConfig, tiny_model
from tests.host.families import CPU, DEVICE
from tests.host.search.conftest import CANDIDATES, COUNT, SAMPLING
from tests.host.search.test_search import batch, row_by_row


class WithoutAutograd(torch.autograd.Function):
    """A kernel that has no backward pass, as kernels for quantised weights have none."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 1.0

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("this kernel has no derivative")


def test_kernels_without_a_backward_pass(tiny, stock, search):
    model = row_by_row(tiny.model)
    inner = model.model_options["model_function_wrapper"]

    def kernel(apply: Any, arguments: dict) -> torch.Tensor:
        return WithoutAutograd.apply(inner(apply, arguments))

    model.set_model_unet_function_wrapper(kernel)
    kept, _ = search(model)
    assert torch.equal(
        kept["samples"], stock(model, tiny, latent_image=batch(), **SAMPLING)[kept["batch_index"]]
    )


def quantised(dtype: torch.dtype) -> Any:
    """A MODEL whose matrices the host keeps in a dtype and casts when it uses them."""
    config = TinyConfig(dict(UNET))
    config.set_inference_dtype(dtype, torch.float32)
    with torch.inference_mode():
        base = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.EPS, device="cpu")
        # random numbers exist in more bits only
        plain = tiny_model().model.diffusion_model.state_dict()
        base.diffusion_model.load_state_dict({name: weight.to(dtype) for name, weight in plain.items()})
        base.model_sampling.to(DEVICE)
        return comfy.model_patcher.ModelPatcher(base, DEVICE, CPU)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float16, torch.bfloat16])
def test_weights_in_fewer_bits(tiny, stock, search, dtype):
    model = row_by_row(quantised(dtype))
    assert model.model.diffusion_model.out[2].weight.dtype == dtype
    kept, _ = search(model)
    assert torch.equal(
        kept["samples"], stock(model, tiny, latent_image=batch(), **SAMPLING)[kept["batch_index"]]
    )


PATCHES = {
    "EasyCache": lambda model: nodes_easycache.EasyCacheNode.execute(model, 0.2, 0.15, 0.95, False),
    "LazyCache": lambda model: nodes_easycache.LazyCacheNode.execute(model, 0.2, 0.15, 0.95, False),
    "momentum": lambda model: nodes_apg.APG.execute(model, 1.0, 5.0, 0.8),
}


@pytest.mark.parametrize("at_once", [0, 2])
@pytest.mark.parametrize("patch", PATCHES)
def test_patches_that_remember_the_batch_begin_anew_when_rows_are_dropped(tiny, search, patch, at_once):
    model = PATCHES[patch](tiny.model).args[0]
    kept, record = search(model, sampling={"steps": 20}, rows_at_once=at_once)
    assert kept["samples"].isfinite().all()
    assert len(record.kept) == COUNT


@pytest.mark.parametrize("patch", PATCHES)
def test_patches_that_remember_the_batch_are_as_ever_until_rows_are_dropped(tiny, stock, search, patch):
    model = PATCHES[patch](tiny.model).args[0]
    kept, _ = search(model, sampling={"steps": 20}, looks=())
    drawn = stock(model, tiny, latent_image=batch(), **SAMPLING | {"steps": 20})
    assert torch.equal(kept["samples"], drawn[kept["batch_index"]])


def test_rows_that_fit_by_the_hosts_own_estimate(tiny):
    base = tiny.model.model
    alone = base.memory_required([1, 4, 8, 8]) * 1.5
    shape = (CANDIDATES, 4, 8, 8)
    assert rows_that_fit(base, shape, 3.5 * alone) == 3
    assert rows_that_fit(base, shape, 0) == 1
    assert rows_that_fit(base, shape, 1e12) == CANDIDATES


def test_the_host_makes_room_for_the_rows_of_one_call(tiny, search, monkeypatch):
    """For all candidates it would take weights off a small card."""
    shapes = []
    before = comfy.sampler_helpers.estimate_memory

    def estimate(model: Any, shape: Any, conds: Any) -> Any:
        shapes.append(list(shape))
        return before(model, shape, conds)

    monkeypatch.setattr(comfy.sampler_helpers, "estimate_memory", estimate)
    search(rows_at_once=2)
    search()
    assert shapes == [[2, 4, 8, 8], [CANDIDATES, 4, 8, 8]]


def test_room_beside_models_leaves_out_those_of_other_devices(tiny):
    here = room_beside([tiny.model])
    elsewhere = SimpleNamespace(load_device=torch.device("meta"), model_size=lambda: 1e9)
    assert room_beside([tiny.model, elsewhere]) == here
    assert here - room_beside([tiny.model, tiny.encoder.patcher]) == tiny.encoder.patcher.model_size()
