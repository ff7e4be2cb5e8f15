"""A backward pass through other attention kernels, compiled networks, and patches with models."""

from __future__ import annotations

import pytest

pytest.importorskip("comfy.memory_management")  # newer than the oldest host

import sys
from types import SimpleNamespace
from typing import Any

import comfy.ldm.modules.attention as attention
import comfy.model_patcher
import comfy.patcher_extension
import torch
from jepa_guidance.host.comfy.backward_ops import torch_attention, training_operations
from jepa_guidance.host.comfy.streaming import is_dynamic, is_streamed
from jepa_guidance.host.gradient.chain import LatentGradient
from jepa_guidance.host.gradient.compiled import compiles, is_compiled
from jepa_guidance.host.gradient.differentiable import differentiable_options
from jepa_guidance.host.gradient.residency import ResidentParts, keep_whole, resident
from torch import Tensor, nn

from tests.host.dynamic_vram import dynamic_vram
from tests.host.guidance.test_families import encoder_of, family_of, guided, sample
from tests.host.hosts import newer_host


def cosine(a: Tensor, b: Tensor) -> float:
    return float(nn.functional.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0))


@pytest.fixture
def gradients(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The gradients of all guided steps in the runs of a test."""
    found: list[Tensor] = []
    call = LatentGradient.__call__

    def noting(self: Any, *args: Any) -> Any:
        result = call(self, *args)
        found.append(result.gradient.detach())
        return result

    monkeypatch.setattr(LatentGradient, "__call__", noting)
    return found


def through(family: Any, model: Any = None, **settings: Any) -> list[str]:
    """The notices of a run through the denoiser."""
    reports: list[Any] = []
    patched = guided(
        family, encoder_of(), model=model, through_denoiser=True, report=reports.append, **settings
    )
    sample(family, patched, steps=3)
    return reports[-1].notices


# --- attention ------------------------------------------------------------------------------------------------------


@attention.wrap_attn
def attention_like_sage(q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any) -> Tensor:
    plain = attention.attention_pytorch.__wrapped__
    with torch.no_grad():
        return plain(q.detach(), k.detach(), v.detach(), heads, *args, **kwargs)


@pytest.fixture
def chosen_at_start(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The host as if started with another attention: all modules that imported it by name have that one."""

    def choose(kernel: Any) -> int:
        count = 0
        for module in list(sys.modules.values()):
            for name in ("optimized_attention", "optimized_attention_masked"):
                if callable(vars(module).get(name)) and module.__name__.startswith("comfy"):
                    monkeypatch.setattr(module, name, kernel)
                    count += 1
        return count

    return choose


@pytest.mark.parametrize("name", ["pixart", "hunyuan_dit", "ernie", "sd15", "flux", "z_image"])
def test_the_gradient_is_right_with_any_attention(name, gradients, chosen_at_start):
    family = family_of(name)
    assert through(family) == []
    expected = gradients.copy()
    gradients.clear()
    assert chosen_at_start(attention_like_sage) > 10
    assert through(family) == []
    for found, right in zip(gradients[:1], expected[:1], strict=True):
        assert cosine(found, right) > 0.999


def test_calls_without_options_use_torchs_attention_only_within_the_block(chosen_at_start):
    """An override in the model options would not reach them."""
    import comfy.ldm.pixart.blocks as blocks

    chosen_at_start(attention_like_sage)
    assert blocks.optimized_attention is attention_like_sage
    with torch_attention():
        assert blocks.optimized_attention is attention.attention_pytorch
        assert attention.optimized_attention_for_device(torch.device("cuda")) is attention.attention_pytorch
    assert blocks.optimized_attention is attention_like_sage
    with pytest.raises(ZeroDivisionError), torch_attention():
        raise ZeroDivisionError
    assert blocks.optimized_attention is attention_like_sage


# --- defaults of newer hosts ----------------------------------------------------------------------------------------


def test_the_hosts_own_compiler_is_off_within_a_differentiated_block(monkeypatch):
    from comfy.cli_args import args

    monkeypatch.setattr(args, "disable_comfy_compiler", False, raising=False)
    inside = []

    def fail() -> None:
        with training_operations():
            inside.append(args.disable_comfy_compiler)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert inside == [True]
    assert args.disable_comfy_compiler is False
    monkeypatch.delattr(args, "disable_comfy_compiler")
    with training_operations():
        assert not hasattr(args, "disable_comfy_compiler")


def test_a_networks_cache_between_steps_is_off_in_differentiated_calls_only():
    options = {"transformer_options": {"qwen_image21_cache": {"device": "gpu"}, "wrappers": {}}}
    assert differentiable_options(options)["transformer_options"]["qwen_image21_cache"] == {"device": "off"}
    assert options["transformer_options"]["qwen_image21_cache"] == {"device": "gpu"}


# --- compiled networks ----------------------------------------------------------------------------------------------


def compiled_by_the_hosts_node(model: Any) -> Any:
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    patched = model.clone()
    set_torch_compile_wrapper(patched, backend="eager")
    return patched


def compiled_by_an_object_patch(model: Any) -> Any:
    patched = model.clone()
    patched.add_object_patch(
        "diffusion_model", torch.compile(model.get_model_object("diffusion_model"), backend="eager")
    )
    return patched


COMPILERS = [compiled_by_the_hosts_node, compiled_by_an_object_patch]


@newer_host
@pytest.mark.parametrize("before", [True, pytest.param(False, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "compiled", [COMPILERS[0], *(pytest.param(one, marks=pytest.mark.long) for one in COMPILERS[1:])]
)
def test_a_compiled_network_is_differentiated_as_it_was_written(gradients, compiled, before):
    family = family_of("sd15")
    assert through(family) == []
    expected = gradients.copy()
    gradients.clear()
    grads_in_compiled: list[bool] = []
    torch._dynamo.reset()
    reports: list[Any] = []
    patched = guided(
        family,
        encoder_of(),
        model=compiled(family.model) if before else family.model,
        through_denoiser=True,
        report=reports.append,
    )
    if not before:
        patched = compiled(patched)
    call = torch._dynamo.eval_frame.OptimizedModule.__call__
    hooked: list[nn.Module] = []

    def noting(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        grads_in_compiled.append(x.requires_grad)
        hooked.extend(part for part in self.modules() if part._forward_pre_hooks)
        return call(self, x, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch._dynamo.eval_frame.OptimizedModule, "__call__", noting)
        sample(family, patched, steps=3)
    assert reports[-1].notices == []
    assert grads_in_compiled
    assert not any(grads_in_compiled)
    assert hooked == []
    for found, right in zip(gradients, expected, strict=True):
        assert cosine(found, right) > 0.999
    # if the compiled network is a patch of the loaded model, it is restored
    assert is_compiled(patched.model.diffusion_model) == (compiled is compiled_by_an_object_patch)


@newer_host
def test_wrappers_that_compile_are_recognised():
    family = family_of("sd15")
    kinds = compiled_by_the_hosts_node(family.model).wrappers
    (wrapper,) = kinds[comfy.patcher_extension.WrappersMP.APPLY_MODEL]["torch.compile"]
    assert compiles(wrapper)
    table = {"x": nn.Linear(1, 1)}
    assert not compiles(lambda executor, *args: table)
    assert not compiles(print)


# --- parts that come with conditioning and patches ------------------------------------------------------------------


class Patch:
    """A patch with a model, like the host's model patches."""

    def __init__(self, model_patch: Any) -> None:
        self.model_patch = model_patch

    def __call__(self, *args: Any) -> Any:
        return args

    def models(self) -> list[Any]:
        return [self.model_patch]


class Control:
    """A ControlNet of another pack, with a patcher, its module, and a chain."""

    def __init__(self, patcher: Any, previous: Any = None) -> None:
        self.wrapped = patcher
        self.control_model = patcher.model
        self.previous_controlnet = previous


@newer_host
def test_every_patcher_in_the_arguments_of_a_run_becomes_resident_and_nothing_else_is_copied():
    with dynamic_vram() as card:
        made = [
            comfy.model_patcher.ModelPatcherDynamic(
                nn.Sequential(nn.Linear(2, 2)), torch.device("cpu", 0), torch.device("cpu")
            )
            for _ in range(4)
        ]
        chained = Control(made[0], Control(made[1]))
        patch = Patch(made[2])
        kept = SimpleNamespace(value=torch.zeros(1))
        conds = {
            "positive": [{"control": chained, "gligen": ("position", made[3], [1, 2]), "other": kept}],
            "negative": [{"control": chained}],
        }
        options = {"transformer_options": {"patches": {"double_block": [patch, patch.__call__]}}}
        copies = ResidentParts()
        new_conds, new_options = copies(conds), copies(options)
        control = new_conds["positive"][0]["control"]
        assert control is new_conds["negative"][0]["control"]  # the host batches conditions that share one
        assert control.control_model is control.wrapped.model
        assert not is_dynamic(control.wrapped)
        assert not is_dynamic(control.previous_controlnet.wrapped)
        assert not is_dynamic(new_conds["positive"][0]["gligen"][1])
        one, bound = new_options["transformer_options"]["patches"]["double_block"]
        assert not is_dynamic(one.model_patch)
        assert bound.__self__ is one
        assert new_conds["positive"][0]["other"] is kept
        # objects that the graph keeps for its next run are unchanged
        assert chained.wrapped is made[0]
        assert chained.control_model is made[0].model
        assert patch.model_patch is made[2]
        untouched = {"a": [kept, (1, 2)], "b": print}
        assert ResidentParts()(untouched) is untouched
        assert card.total


@newer_host
def test_partly_loaded_models_are_loaded_whole_and_those_that_cannot_be_are_returned():
    import comfy.model_management as management
    import comfy.ops

    network = nn.Sequential(*(comfy.ops.disable_weight_init.Linear(256, 256) for _ in range(8)))
    with dynamic_vram() as card, torch.inference_mode():
        patcher = comfy.model_patcher.ModelPatcher(network, torch.device("cpu", 0), torch.device("cpu"))
        card.taken = card.free()  # there is room for one layer only
        management.load_models_gpu([patcher])
        assert patcher.model.model_lowvram
        assert keep_whole([patcher], []) == []
        assert not patcher.model.model_lowvram
        management.unload_all_models()

        load = comfy.model_patcher.ModelPatcher.load

        def without_room(self: Any, *args: Any, full_load: bool = False, **kwargs: Any) -> None:
            if full_load:
                raise torch.OutOfMemoryError("CUDA out of memory")
            load(self, *args, **kwargs)

        management.load_models_gpu([patcher])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(comfy.model_patcher.ModelPatcher, "load", without_room)
            assert keep_whole([patcher], []) == [patcher]


def test_a_model_on_two_devices_counts_as_streamed():
    """The host may leave layers of other libraries behind without recording it."""
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    patcher = comfy.model_patcher.ModelPatcher(network, torch.device("meta"), torch.device("cpu"))
    network[0].to("meta")
    assert is_streamed(patcher)
    network[1].to("meta")
    assert not is_streamed(patcher)


@newer_host
def test_a_plain_patcher_is_already_resident():
    patcher = family_of("sd15").model
    assert resident(patcher) is patcher
