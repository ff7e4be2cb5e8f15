"""Samplers of other packs, run for real: JEPA_OTHER_PACKS names a folder with clones of the packs in the table.

docs/compatibility.md has the result. Without the folder, samplers written as theirs are in test_samplers_of_other_packs.py.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module
from inspect import signature
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import comfy.k_diffusion.sampling
import comfy.samplers
import pytest
import torch
from aiohttp import web
from server import PromptServer

from tests.host.guidance.test_custom_sampling import guided
from tests.host.guidance.test_samplers import zero_guided

FOLDER = os.environ.get("JEPA_OTHER_PACKS", "")
# The clone's folder, the folder of its samplers, and the modules there.
PACKS = {
    "Extra-Samplers": ("ComfyUI-Extra-Samplers", "", ["extra_samplers"]),
    "ppm": (
        "ComfyUI-ppm",
        "src/sampling",
        ["ppm_sampling", "ppm_dyn_sampling", "ppm_cfgpp_sampling", "ppm_cfgpp_dyn_sampling"],
    ),
    "Euler-Smea-Dyn": ("Euler-Smea-Dyn-Sampler", "", ["smea_sampling"]),
    # needs opencv-python and PyWavelets
    "RES4LYF": ("RES4LYF", "", ["beta", "beta.rk_sampler_beta", "legacy.legacy_sampler_rk"]),
}
# Their state does not follow a change of the latent.
REFUSED = {"Extra-Samplers: supreme"}
# With ComfyUI 0.30.0 and a KSampler on a processor, without this pack. legacy_rk asks for "cuda" by name.
FAILS_ALONE = {"RES4LYF: legacy_rk"} | {
    f"Extra-Samplers: {name}"
    for name in ("clyb_4m_sde_momentumized", "refined_exp_s", "res_solver", "dpmpp_dualsde_momentum")
}

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not FOLDER, reason="JEPA_OTHER_PACKS names no folder with clones of sampler packs"),
]


def samplers_of(name: str) -> dict[str, Callable]:
    """The sampler functions of a pack, by the pack and their name."""
    clone, inner, modules = PACKS[name]
    package = f"sampler_pack_{name.replace('-', '_')}"
    parent = sys.modules.setdefault(package, ModuleType(package))
    parent.__path__ = [str(Path(FOLDER) / clone / inner)]
    return {
        f"{name}: {made.replace('sample_', '')}": function
        for module in modules
        for made, function in vars(import_module(f"{package}.{module}")).items()
        if made.startswith(("sample_", "legacy_sample_"))
        and {"model", "x", "sigmas"} <= set(signature(function).parameters)
        and function.__module__.startswith(package)
    }


def all_samplers() -> dict[str, Callable]:
    """Those of all packs. RES4LYF adds routes to the host's server as it is imported, so there is one meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PromptServer, "instance", SimpleNamespace(routes=web.RouteTableDef()), raising=False)
        return {key: function for name in PACKS for key, function in samplers_of(name).items()}


ALL = all_samplers() if FOLDER else {}


@pytest.fixture
def theirs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Adds a pack's sampler to KSampler's menu, as such packs do."""
    monkeypatch.setattr(comfy.samplers.KSampler, "SAMPLERS", [*comfy.samplers.KSampler.SAMPLERS, "theirs"])
    monkeypatch.setattr(comfy.k_diffusion.sampling, "sample_theirs", ALL[request.param], raising=False)
    return str(request.param)


@pytest.mark.parametrize("theirs", ALL, indirect=True)
def test_it_is_guided_or_refused_by_name(tiny: Any, stock: Any, theirs: str) -> None:
    settings = {"sampler_name": "theirs", "scheduler": "normal", "steps": 6}
    if theirs in FAILS_ALONE:
        with pytest.raises((TypeError, RuntimeError)):
            stock(tiny.model, tiny, **settings)
        return
    plain = stock(tiny.model, tiny, **settings)
    if theirs in REFUSED:
        with pytest.raises(ValueError, match=r"JEPA guidance .* the sampler 'theirs'"):
            stock(zero_guided(tiny), tiny, **settings)
        return
    assert torch.equal(stock(zero_guided(tiny), tiny, **settings), plain)
    reports: list[Any] = []
    found = stock(guided(tiny, reports), tiny, **settings)
    assert found.isfinite().all()
    assert not torch.equal(found, plain)
    # some make one step of the last two, or one more
    total = reports[-1].total
    assert total in (5, 6, 7)
    wanted = [step for step in range(total) if step / total >= 0.2]
    assert [step.step for step in reports[-1].guided_steps] == wanted


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "uni_pc"])
@pytest.mark.parametrize("chunked", [True, False])
def test_a_pack_that_restarts_the_samplers_of_the_host_is_guided(
    tiny: Any, sampler: str, chunked: bool
) -> None:
    folder = Path(FOLDER) / "ComfyUI_restart_sampling"
    parent = sys.modules.setdefault("restart_pack", ModuleType("restart_pack"))
    parent.__path__ = [str(folder)]
    restart = import_module("restart_pack.restart_sampling")

    def drawn(model: Any) -> torch.Tensor:
        settings = (5, 6, 3.0, sampler, "normal", tiny.positive, tiny.negative)
        with torch.inference_mode():
            (latent,) = restart.restart_sampling(
                model,
                *settings,
                {"samples": torch.zeros(1, 4, 8, 8)},
                restart.DEFAULT_SEGMENTS,
                "normal",
                chunked_mode=chunked,
            )
        return latent["samples"].clone()

    plain = drawn(tiny.model)
    assert torch.equal(drawn(zero_guided(tiny)), plain)
    reports: list[Any] = []
    found = drawn(guided(tiny, reports))
    assert found.isfinite().all()
    assert not torch.equal(found, plain)
    assert len(reports[-1].steps) == reports[-1].total


@pytest.mark.parametrize(
    ("name", "bongmath"),
    [("multistep/res_2m", True), ("exponential/res_3s", False), ("multistep/dpmpp_2m", True)],
)
def test_the_sampler_node_of_res4lyf_guides_with_a_guided_model(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, name: str, bongmath: bool
) -> None:
    theirs = import_module("sampler_pack_RES4LYF.beta.rk_sampler_beta").sample_rk_beta
    monkeypatch.setattr(
        comfy.k_diffusion.sampling, "sample_rk_beta", theirs, raising=False
    )  # as the pack does
    node = import_module("sampler_pack_RES4LYF.beta.samplers").ClownsharKSampler_Beta
    settings = {"positive": tiny.positive, "negative": tiny.negative, "scheduler": "normal", "steps": 6}
    settings |= {"cfg": 3.0, "sampler_name": name, "seed": 5, "eta": 0.5, "bongmath": bongmath}

    def drawn(model: Any) -> torch.Tensor:
        with torch.inference_mode():
            output = node.execute(model=model, latent_image={"samples": torch.zeros(2, 4, 8, 8)}, **settings)
        return output.args[0]["samples"].clone()

    plain = drawn(tiny.model)
    assert torch.equal(drawn(tiny.model), plain)
    assert torch.equal(drawn(zero_guided(tiny)), plain)
    reports: list[Any] = []
    found = drawn(guided(tiny, reports))
    assert found.isfinite().all()
    assert not torch.equal(found, plain)
    assert reports[-1].guided_steps
    assert torch.equal(drawn(tiny.model), plain)
