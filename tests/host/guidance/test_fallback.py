"""Guided runs that run out of memory, with streamed weights, and with weights that hooks change."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import comfy.hooks
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import pytest
import torch
from jepa_guidance.host.comfy import memory
from jepa_guidance.host.comfy.memory import is_out_of_memory
from jepa_guidance.host.gradient import residency
from jepa_guidance.host.gradient.chain import LatentGradient
from jepa_guidance.host.gradient.decoders import LatentDecoder
from jepa_guidance.host.gradient.image_gradient import Guide, ImageGradient
from jepa_guidance.host.gradient.residency import refuse_streamed
from jepa_guidance.host.guidance.schedule import Schedule
from jepa_guidance.host.memory import plan

from jepa_core import RarityGradient, differentiable
from tests.host.guide import guide_model

RARITY = {"k": 3, "oversample": 2, "power_iterations": 1}


def guided(tiny: Any, reports: list[Any] | None = None, **settings: Any) -> Any:
    return guide_model(
        tiny.model,
        tiny.vae,
        tiny.encoder,
        Schedule(end_percent=1.0),
        RarityGradient(**RARITY, **settings.pop("rarity", {})),
        report=(reports if reports is not None else []).append,
        **settings,
    )


class Card:
    """A device that is out of memory whenever `full` returns true."""

    def __init__(self, full: Callable[..., bool]) -> None:
        self.full = full
        self.failures = 0

    def put_on(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> Card:
        method = getattr(owner, name)

        def limited(*args: Any, **kwargs: Any) -> Any:
            if getattr(args[0], "is_meta", False):
                raise TypeError("this network cannot be counted without data")
            if self.full(*args):
                self.failures += 1
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 23.00 GiB.")
            return method(*args, **kwargs)

        monkeypatch.setattr(owner, name, limited)
        return self


def forward_is_replaced(module: torch.nn.Module) -> bool:
    """Whether forward methods of layers or blocks are replaced (a Card may replace that of a decoder)."""
    decoder = getattr(module, "decoder", None)
    return any("forward" in part.__dict__ for part in module.modules() if part is not decoder)


def forget_failures(tiny: Any) -> None:
    plan._failures.pop(tiny.model.model.diffusion_model, None)


@pytest.fixture(autouse=True)
def nothing_idle():
    """Unload models left over from other tests, which a run without memory would unload first."""
    comfy.model_management.unload_all_models()


LATENT = {"latent_image": {"samples": torch.zeros(1, 4, 20, 20)}}


def test_first_the_host_unloads_what_the_run_does_not_need(monkeypatch, tiny, stock):
    idle, other = tiny.make_vae(), tiny.make_model()
    expected = stock(guided(tiny), tiny, **LATENT)
    comfy.model_management.load_models_gpu([idle.patcher, other])

    def loaded() -> list[bool]:
        entries = [entry.model.model for entry in comfy.model_management.current_loaded_models]
        models = (
            idle.patcher.model,
            other.model,
            tiny.model.model,
            tiny.vae.patcher.model,
            tiny.encoder.patcher.model,
        )
        return [any(entry is model for entry in entries) for model in models]

    assert loaded()[:2] == [True, True]
    decoder = tiny.vae.first_stage_model.decoder
    card = Card(lambda *_: any(loaded()[:2])).put_on(monkeypatch, decoder, "forward")
    reports: list[Any] = []
    assert torch.equal(stock(guided(tiny, reports), tiny, **LATENT), expected)
    assert card.failures == 1
    assert loaded() == [False, False, True, True, True]
    assert reports[-1].notices == ["out of memory: unloaded 2 model(s) that this run does not need"]


def test_then_the_run_takes_one_direction_per_pass(monkeypatch, tiny, stock, caplog):
    settings = {"decoder": "encoder resolution"}
    expected = stock(guided(tiny, rarity={"chunk": 1}, **settings), tiny, **LATENT)
    many = stock(guided(tiny, **settings), tiny, **LATENT)
    card = Card(lambda x: len(x) > 1).put_on(monkeypatch, tiny.encoder.encoder, "forward")
    reports: list[Any] = []
    with caplog.at_level(logging.WARNING):
        found = stock(guided(tiny, reports, **settings), tiny, **LATENT)
    assert card.failures == 1
    # the same image, up to rounding
    assert (found - many).abs().max() < 1e-2 * (many - stock(tiny.model, tiny, **LATENT)).abs().max()
    assert torch.equal(found, expected)
    assert "one direction per encoder pass (slower, the same image)" in reports[-1].message()
    assert "one direction per encoder pass" in caplog.text
    assert len(reports[-1].notices) == 1


def test_then_the_decoder_at_the_encoders_resolution(monkeypatch, tiny, stock):
    expected = stock(guided(tiny, decoder="encoder resolution"), tiny, **LATENT)
    full = stock(guided(tiny), tiny, **LATENT)
    card = Card(lambda z: z.shape[-1] > 14).put_on(monkeypatch, tiny.vae.first_stage_model.decoder, "forward")
    reports: list[Any] = []
    found = stock(guided(tiny, reports), tiny, **LATENT)
    assert card.failures == 1
    assert torch.equal(found, expected)
    assert not torch.equal(found, full)
    assert (
        "decoder at encoder resolution (a different image than with the full decoder)"
        in reports[-1].notices[-1]
    )


def test_last_the_denoiser_is_held_constant(monkeypatch, tiny, stock):
    network = tiny.model.model.diffusion_model
    settings = {"decoder": "encoder resolution"}
    expected = stock(guided(tiny, **settings), tiny, **LATENT)
    Card(lambda x, *_: x.requires_grad).put_on(monkeypatch, network, "forward")
    reports: list[Any] = []
    found = stock(guided(tiny, reports, through_denoiser=True, one_call=True), tiny, **LATENT)
    assert "denoiser constant" in reports[-1].notices[-1]
    one_call = stock(guided(tiny, one_call=True, **settings), tiny, **LATENT)
    assert torch.allclose(found, one_call, rtol=0, atol=1e-3 * float(one_call.abs().max()))
    assert not torch.allclose(found, expected, rtol=0, atol=1e-3 * float(one_call.abs().max()))


@pytest.mark.parametrize("through", [False, True])
def test_if_nothing_helps_the_devices_error_is_raised_and_nothing_is_left_behind(
    monkeypatch, tiny, stock, caplog, through
):
    before = stock(guided(tiny), tiny)
    modules = (tiny.model.model, tiny.vae.first_stage_model, tiny.encoder.patcher.model)
    weights = [{id(t) for t in (*m.parameters(), *m.buffers())} for m in modules]
    with monkeypatch.context() as patch:
        Card(lambda *_: True).put_on(patch, tiny.vae.first_stage_model.decoder, "forward")
        with caplog.at_level(logging.ERROR), pytest.raises(torch.OutOfMemoryError):
            stock(guided(tiny, through_denoiser=through), tiny)
    assert "nothing cheaper is left" in caplog.text
    assert weights == [{id(t) for t in (*m.parameters(), *m.buffers())} for m in modules]
    assert not any(forward_is_replaced(module) for module in modules)
    forget_failures(tiny)
    assert torch.equal(stock(guided(tiny), tiny), before)


def test_the_next_run_begins_with_what_worked(monkeypatch, tiny, stock):
    monkeypatch.setattr(memory, "get_free_memory", lambda device: 1 << 32)
    patched = guided(tiny)
    before = stock(patched, tiny, **LATENT)
    with monkeypatch.context() as patch:
        card = Card(lambda z: z.shape[-1] > 14)
        card.put_on(patch, tiny.vae.first_stage_model.decoder, "forward")
        cheaper = stock(patched, tiny, **LATENT)
        assert not torch.equal(cheaper, before)
        failures = card.failures
        assert failures >= 1
        assert torch.equal(stock(patched, tiny, **LATENT), cheaper)
        assert card.failures == failures
    # another size is another case
    assert torch.equal(stock(patched, tiny), stock(patched, tiny))
    # and so is a device with more free memory
    monkeypatch.setattr(memory, "get_free_memory", lambda device: 1 << 33)
    assert torch.equal(stock(patched, tiny, **LATENT), before)


def test_models_that_a_run_does_not_need_are_unloaded_before_it_fails(monkeypatch, tiny, stock):
    """What is free decides how much the host unloads, before the first step."""
    idle = tiny.make_model()
    comfy.model_management.load_models_gpu([idle])

    # nothing is free but what the idle model holds
    def little(device: Any = None, torch_free_too: bool = False) -> Any:
        return (1 << 20, 1 << 20) if torch_free_too else 1 << 20

    monkeypatch.setattr(memory, "get_free_memory", little)
    monkeypatch.setattr(comfy.model_management, "get_free_memory", little)
    reports: list[Any] = []
    stock(guided(tiny, reports), tiny, **LATENT)
    loaded = [entry.model.model for entry in comfy.model_management.current_loaded_models]
    assert not any(one is idle.model for one in loaded)
    assert "to fit" in reports[-1].notices[0]


def test_another_error_is_raised_unchanged(monkeypatch, tiny, stock):
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(tiny.vae.first_stage_model.decoder, "forward", fail)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        stock(guided(tiny), tiny)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 18.13 GB)"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("GET was unable to find an engine to execute this computation"), True),
        (RuntimeError("Could not allocate tensor. There is not enough GPU video memory available!"), True),
        (
            RuntimeError("UR backend failed. UR backend returns:39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
            True,
        ),
        (MemoryError(), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error, expected):
    assert is_out_of_memory(error) is expected


# --- weights that are not in place ------------------------------------------------------------------------------


@pytest.fixture
def one_buffer(monkeypatch):
    """Have the host cast every weight into the same buffer, as its streaming does on a GPU.

    The forward pass of each layer is right; its backward pass reads the weights of the last layer.
    """
    buffers: dict[torch.Size, torch.Tensor] = {}
    cast = comfy.ops.cast_bias_weight

    def streamed(layer: Any, *args: Any, **kwargs: Any) -> Any:
        weight, *rest = cast(layer, *args, **kwargs)
        memory = buffers.setdefault(weight.shape, weight.detach().clone())
        # a separate tensor over the same memory: autograd does not notice that later layers write there
        view = torch.empty(0, dtype=weight.dtype)
        view.set_(memory.untyped_storage(), 0, memory.shape, memory.stride())
        view.copy_(weight.detach())
        return view, *rest

    monkeypatch.setattr(comfy.ops, "cast_bias_weight", streamed)


def gradient_of_decoding(tiny: Any, latent: torch.Tensor) -> torch.Tensor:
    chain = LatentGradient(
        LatentDecoder(tiny.vae), ImageGradient([Guide(tiny.encoder.encoder)], RarityGradient(k=3))
    )
    return chain.of_latent(latent).gradient


def streamed_vae(tiny: Any) -> None:
    """Load the VAE as the host does when memory is short: its layers cast their weights at every call."""
    tiny.vae.patcher.load(torch.device("cpu"), lowvram_model_memory=1)


def test_streaming_gives_silently_wrong_gradients_and_is_refused(tiny, one_buffer, stock):
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    right = gradient_of_decoding(tiny, latent)
    for layer in tiny.vae.first_stage_model.modules():
        if hasattr(layer, "comfy_cast_weights"):
            layer.comfy_cast_weights = True
    wrong = gradient_of_decoding(tiny, latent)
    # no error, finite, and wrong: the reason for the refusal
    assert wrong.isfinite().all()
    assert torch.nn.functional.cosine_similarity(right.flatten(), wrong.flatten(), dim=0) < 0.9
    streamed_vae(tiny)
    with pytest.raises(ValueError, match="the VAE while its weights are streamed"):
        refuse_streamed(tiny.vae.patcher, "the VAE")


def partly_loaded(monkeypatch: pytest.MonkeyPatch, module: torch.nn.Module) -> None:
    """Have the host load this module only in part, always."""
    load = comfy.model_patcher.ModelPatcher.load

    def short(self: Any, device: Any, *args: Any, **kwargs: Any) -> Any:
        if self.model is module:
            args, kwargs = (), {"lowvram_model_memory": 1}
        return load(self, device, *args, **kwargs)

    monkeypatch.setattr(comfy.model_patcher.ModelPatcher, "load", short)


@pytest.mark.parametrize("what", ["vae", "encoder"])
def test_a_decoder_or_encoder_that_stays_streamed_is_refused(monkeypatch, tiny, stock, what):
    module = {"vae": tiny.vae.first_stage_model, "encoder": tiny.encoder.patcher.model}[what]
    # the encoder's layers are not of the host's classes, so they cannot really be streamed
    module.model_lowvram = False
    partly_loaded(monkeypatch, module)
    monkeypatch.setattr(residency, "is_streamed", lambda patcher: patcher.model is module)
    with pytest.raises(ValueError, match="streamed from system memory"):
        stock(guided(tiny, through_denoiser=True), tiny)


def test_a_denoiser_that_stays_streamed_is_held_constant_and_the_run_says_so(monkeypatch, tiny, stock):
    expected = stock(guided(tiny), tiny)
    comfy.model_management.unload_all_models()
    partly_loaded(monkeypatch, tiny.model.model)
    reports: list[Any] = []
    found = stock(guided(tiny, reports, through_denoiser=True), tiny)
    assert tiny.model.model.model_lowvram
    assert reports[-1].notices == [
        "the denoiser does not fit this device whole: denoiser constant (a different image than through the denoiser)"
    ]
    assert torch.equal(found, expected)


# --- weights that change within a step --------------------------------------------------------------------------


def hooked(tiny: Any, conditioning: list, strength: float) -> list:
    """Conditioning with a LoRA for one weight of the denoiser."""
    key = "diffusion_model.out.2.weight"
    change = torch.full_like(tiny.model.model.state_dict()[key], 0.1)
    hook = comfy.hooks.WeightHook(strength_model=strength, strength_clip=0.0)
    hook.weights = {key: ("diff", (change,))}
    hook.need_weight_init = False
    group = comfy.hooks.HookGroup()
    group.add(hook)
    return [[cond, {**rest, "hooks": group}] for cond, rest in conditioning]


def test_a_lora_that_comes_with_the_conditioning_is_guided_with_the_denoiser_constant(tiny, stock):
    settings = {"positive": hooked(tiny, tiny.positive, 1.0)}
    plain = stock(tiny.model, tiny, **settings)
    assert not torch.equal(plain, stock(tiny.model, tiny))  # the hook changes the image
    found = stock(guided(tiny), tiny, **settings)
    assert found.isfinite().all()
    assert not torch.equal(found, plain)
    reports: list[Any] = []
    assert torch.equal(stock(guided(tiny, reports, through_denoiser=True), tiny, **settings), found)
    assert "changes the denoiser within a step: denoiser constant" in reports[-1].message()
    # and the weights are restored
    assert torch.equal(stock(tiny.model, tiny, **settings), plain)


def test_differentiable_does_not_keep_weights_alive(tiny):
    with differentiable(tiny.vae.first_stage_model):
        pass
    assert all(weight.is_inference() for weight in tiny.vae.first_stage_model.parameters())


def test_models_are_unloaded_once_in_a_run(monkeypatch, tiny, stock):
    """A host that lists something as unloaded again and again must not keep a run from going on."""
    monkeypatch.setattr(memory.HostRoom, "unload_idle", lambda room: 1)
    Card(lambda *_: True).put_on(monkeypatch, tiny.vae.first_stage_model.decoder, "forward")
    reports: list[Any] = []
    with pytest.raises(torch.OutOfMemoryError):
        stock(guided(tiny, reports), tiny)


def test_a_compiled_denoiser_is_counted_as_it_was_written(tiny, stock, caplog):
    model = tiny.make_model()
    network = model.model.diffusion_model
    # what torch.compile returns, without a compiler
    wrapped = torch._dynamo.eval_frame.OptimizedModule(network, lambda forward: forward)
    model.add_object_patch("diffusion_model", wrapped)
    reports: list[Any] = []
    with caplog.at_level(logging.INFO):
        stock(
            guide_model(
                model,
                tiny.vae,
                tiny.encoder,
                Schedule(end_percent=1.0),
                RarityGradient(**RARITY),
                through_denoiser=True,
                report=reports.append,
            ),
            tiny,
        )
    assert "not counted" not in caplog.text
    assert reports[-1].guided_steps
