"""What other packs change in the host after this pack is loaded counts: menus, functions, devices."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import comfy.k_diffusion.sampling
import comfy.model_management
import comfy.samplers
import nodes as host_nodes
import pytest
import torch
from jepa_guidance.host.comfy import required
from jepa_guidance.host.generators.demo import load_demo_generator
from jepa_guidance.nodes.guided_ksampler import JEPAGuidedKSampler
from jepa_guidance.nodes.input_checks import check_values, inputs_of
from jepa_guidance.nodes.prompt_reference import JEPAPromptReference
from jepa_guidance.nodes.rare_search import JEPARareSearch
from jepa_guidance.nodes.sampling_inputs import sampler_message
from jepa_guidance.nodes.strength_strip import JEPAStrengthStrip

SAMPLING = (JEPAGuidedKSampler, JEPARareSearch, JEPAPromptReference)
HOST_MODULES = ("comfy", "folder_paths", "nodes", "comfy_execution")
# attention that has a backward pass, whatever the user or another pack chose to use elsewhere
WANTED_AS_WRITTEN = {"attention_pytorch", "pytorch_attention", "xformers_attention"}


def sample_late(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Euler's method."""
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * x.new_ones(len(x)), **extra_args)
        callback({"x": x, "i": i, "sigma": sigmas[i], "denoised": denoised})
        x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
    return x


def halves(model_sampling: Any, steps: int) -> torch.Tensor:
    return torch.tensor([*(float(model_sampling.sigma_max) * 0.5**step for step in range(steps)), 0.0])


@pytest.fixture
def late_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another pack, loaded after this one, adds a sampler and a scheduler by replacing the host's lists."""
    samplers = comfy.samplers
    monkeypatch.setattr(samplers.KSampler, "SAMPLERS", [*samplers.KSampler.SAMPLERS, "late"])
    monkeypatch.setattr(samplers.KSampler, "SCHEDULERS", [*samplers.KSampler.SCHEDULERS, "late57"])
    monkeypatch.setitem(samplers.SCHEDULER_HANDLERS, "late57", samplers.SchedulerHandler(halves))
    monkeypatch.setattr(comfy.k_diffusion.sampling, "sample_late", sample_late, raising=False)


@pytest.mark.parametrize("node", SAMPLING)
def test_menus_and_checks_know_what_another_pack_added_later(node: Any, request: Any) -> None:
    late = {"sampler_name": "late", "scheduler": "late57"}
    with pytest.raises(ValueError, match="sampler_name must be one of"):
        check_values(inputs_of(node), late)  # also fills whatever might keep the menus
    request.getfixturevalue("late_pack")
    required = node.INPUT_TYPES()["required"]
    assert "late" in required["sampler_name"][1]["options"]
    assert "late57" in required["scheduler"][1]["options"]
    check_values(inputs_of(node), late)


def test_the_message_about_a_sampler_is_true_before_and_after(request: Any) -> None:
    assert sampler_message("late") == (
        "sampler_name 'late' is not in KSampler's menu now; choose another, or load the pack that adds it"
    )
    request.getfixturevalue("late_pack")
    assert sampler_message("late") is None


def widgets_of(node: Any) -> dict[str, Any]:
    return {entry.id: entry.default for entry in inputs_of(node) if hasattr(entry, "default")}


@pytest.fixture
def own_name(monkeypatch: pytest.MonkeyPatch) -> str:
    """A name that another pack lists, though only its own node can make a sampler of it."""
    samplers = comfy.samplers.KSampler.SAMPLERS
    monkeypatch.setattr(comfy.samplers.KSampler, "SAMPLERS", [*samplers, "only_theirs"])
    with pytest.raises(AttributeError):
        comfy.samplers.sampler_object("only_theirs")
    return "only_theirs"


@pytest.mark.parametrize("node", [*SAMPLING, JEPAStrengthStrip])
def test_menus_have_a_name_that_only_its_own_pack_can_use(own_name: str, node: Any) -> None:
    facts = node.INPUT_TYPES()["required"]["sampler_name"][1]
    assert own_name in facts["options"]
    assert own_name not in facts["jepa_unguided"]  # the pack's own node can be guided


ONLY_THEIRS = "sampler_name 'only_theirs' works only in a node of the pack that lists it; choose another"


@pytest.mark.parametrize("strength", [0.0, 0.5])
@pytest.mark.parametrize("node", [JEPAGuidedKSampler, JEPAPromptReference, JEPAStrengthStrip])
def test_a_name_that_only_its_own_pack_can_use_is_refused_before_work_starts(
    tiny: SimpleNamespace, own_name: str, node: Any, strength: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jepa_guidance.host.comfy.sampling.common_ksampler", None)
    parts = {"model": tiny.model, "vae": tiny.vae, "encoder": tiny.encoder, "positive": tiny.positive}
    parts |= {"negative": tiny.negative, "latent_image": {"samples": torch.zeros(1, 4, 8, 8)}}
    values = {**widgets_of(node), **parts, "sampler_name": own_name}
    values |= {"strength": strength, "strengths": f"{strength}, 1", "rank": 3, "preset": "custom"}
    known = {entry.id for entry in inputs_of(node)}
    with torch.inference_mode(), pytest.raises(ValueError, match=ONLY_THEIRS):
        node.execute(**{name: value for name, value in values.items() if name in known})


def test_a_search_with_a_name_that_only_its_own_pack_can_use_is_refused(own_name: str) -> None:
    assert JEPARareSearch.validate_inputs(sampler_name=[own_name]).startswith(ONLY_THEIRS)


@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_a_sampler_and_a_scheduler_added_later_run(
    tiny: SimpleNamespace, late_pack: None, strength: float
) -> None:
    settings = widgets_of(JEPAGuidedKSampler) | {
        **{"model": tiny.model, "vae": tiny.vae, "encoder": tiny.encoder, "strength": strength},
        **{"positive": tiny.positive, "negative": tiny.negative, "steps": 4, "rank": 3, "preset": "custom"},
        **{"latent_image": {"samples": torch.zeros(1, 4, 8, 8)}},
        **{"sampler_name": "late", "scheduler": "late57"},
    }
    with torch.inference_mode():
        latent, trace = JEPAGuidedKSampler.execute(**settings).result
    assert latent["samples"].isfinite().all()
    assert len(trace.guided_steps) == (0 if strength == 0 else 3)


def test_a_function_that_another_pack_replaces_is_the_one_that_is_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Packs for several devices replace what says where models go."""
    monkeypatch.setattr(comfy.model_management, "unet_offload_device", lambda: torch.device("cpu", 0))
    patcher, _ = load_demo_generator()
    assert patcher.offload_device == torch.device("cpu", 0)
    monkeypatch.setattr(host_nodes, "common_ksampler", lambda *args, **more: "theirs")
    assert required.common_ksampler(None) == "theirs"


def held_by_the_pack() -> Iterator[tuple[str, Any]]:
    for name, module in list(sys.modules.items()):
        if name.startswith("jepa_guidance") and isinstance(module, ModuleType):
            for key, value in vars(module).items():
                yield f"{name}.{key}", value


def is_of_host(module_name: str) -> bool:
    return any(module_name == one or module_name.startswith(f"{one}.") for one in HOST_MODULES)


def test_no_module_holds_a_list_or_a_function_of_the_host() -> None:
    tables = {
        id(value): f"{name}.{key}"
        for name, module in list(sys.modules.items())
        if is_of_host(name) and isinstance(module, ModuleType)
        for owner in (module, *(part for part in vars(module).values() if isinstance(part, type)))
        for key, value in vars(owner).items()
        if isinstance(value, list | dict | set) and not key.startswith("__")
    }
    held = [
        f"{where} is {tables.get(id(value)) or value.__name__}"
        for where, value in held_by_the_pack()
        if id(value) in tables
        or (
            isinstance(value, FunctionType)
            and _host_function(value)
            and value.__name__ not in WANTED_AS_WRITTEN
        )
    ]
    assert held == []


def _host_function(value: Callable) -> bool:
    # one that is looked up at each call has the host's name, and this pack's code
    return is_of_host(value.__module__) and value.__code__.co_filename != required.__file__
