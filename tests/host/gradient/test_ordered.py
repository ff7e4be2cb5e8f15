"""Backward passes in a fixed order: scoped, with the same gradient, and put back. Here for the processor's own kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

pytest.importorskip("comfy.memory_management")  # newer than the oldest host

import comfy.ldm.modules.diffusionmodules.model as autoencoder
import torch
import torch.nn.functional as F
from jepa_guidance.host.comfy.backward_ops import vae_torch_attention
from jepa_guidance.host.gradient import differentiable
from jepa_guidance.host.gradient import ordered as ordered_module
from jepa_guidance.host.gradient.differentiable import host_differentiable, writing_in_place
from jepa_guidance.host.gradient.linearise import linearised
from jepa_guidance.host.gradient.ordered import ordered
from torch import Tensor, nn
from torch.utils import deterministic
from torch.utils._python_dispatch import TorchDispatchMode

from tests.host.guidance.test_families import (
    LONG,
    SUPPORTED,
    encoder_of,
    family_of,
    gradients_of_a_run,
    guided,
    sample,
)

FLASH = "aten._scaled_dot_product_flash_attention_for_cpu_backward.default"
Settings = tuple[int, bool, bool, bool]
TORCH_ATTENTION, TORCH_PAD = F.scaled_dot_product_attention, F.pad


def settings() -> Settings:
    """torch's switches: the mode for deterministic operations, whether memory is filled, and two of cuDNN."""
    cudnn: Any = torch.backends.cudnn
    mode = torch.get_deterministic_debug_mode()
    return mode, deterministic.fill_uninitialized_memory, cudnn.deterministic, cudnn.benchmark


class Recorder(TorchDispatchMode):
    """The settings under which each operation runs; the operation named `broken` fails."""

    def __init__(self, broken: str = "") -> None:
        super().__init__()
        self.seen: dict[str, set[Settings]] = {}
        self.broken = broken

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # without data nothing is added up: memory is counted so
        if not any(isinstance(argument, Tensor) and argument.is_meta for argument in args):
            self.seen.setdefault(str(function), set()).add(settings())
        if str(function) == self.broken:
            raise torch.OutOfMemoryError("no memory for this operation")
        return function(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def everything_is_put_back() -> Iterator[None]:
    before = settings()
    yield
    assert settings() == before
    assert F.scaled_dot_product_attention is TORCH_ATTENTION
    assert F.pad is TORCH_PAD


@pytest.fixture(params=[True, False], ids=["flash", "no flash"])
def flash(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether torch's flash attention takes every call without a mask."""

    def takes(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *_: Any) -> bool:
        return request.param and mask is None

    monkeypatch.setattr(ordered_module, "takes_flash", takes)
    return request.param


@pytest.fixture
def on_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's differentiated calls use on processors what they use on CUDA."""
    monkeypatch.setattr(differentiable, "ordered", partial(ordered, "cpu"))


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(wanted: bool = True) -> list[Tensor]:
    """Query, key and value of 4 heads; with another number of queries than keys."""
    return [numbers(seed, 2, 4, 5 + (seed > 0), 8).requires_grad_(wanted) for seed in range(3)]


# --- what it changes ----------------------------------------------------------------------------------------------


def test_by_default_nothing_but_cudnn_changes_on_a_processor():
    before = settings()
    with ordered():
        assert settings() == (before[0], before[1], True, False)
        x = inputs()
        result = F.scaled_dot_product_attention(*x)
        assert "ForCpu" in result.grad_fn.name()
        assert "Replication" in F.pad(x[0], (1, 1, 1, 1), mode="replicate").grad_fn.name()


def test_where_no_gradient_is_wanted_attention_is_the_host_s(monkeypatch):
    calls = []

    def attention(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(len(args))
        return TORCH_ATTENTION(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    with ordered("cpu"):
        F.scaled_dot_product_attention(*inputs(wanted=False))
        with torch.no_grad():
            F.scaled_dot_product_attention(*inputs())
        assert len(calls) == 2
        # what another pack puts in its place has no backward pass
        F.scaled_dot_product_attention(*inputs()).sum().backward()
    assert len(calls) == 2
    monkeypatch.undo()


OPTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": dict,
    "scaled": lambda: {"scale": 0.3},
    "causal": lambda: {"is_causal": True},
    "masked": lambda: {"attn_mask": numbers(8, 5, 6) > 0},
    "added mask": lambda: {"attn_mask": numbers(8, 2, 1, 5, 6)},
    "a mask with a gradient": lambda: {"attn_mask": numbers(8, 5, 6).requires_grad_()},
}


@pytest.mark.parametrize("options", OPTIONS)
def test_attention_and_its_gradient_are_torch_s(flash, options):
    x, cotangent = inputs(), numbers(9, 2, 4, 5, 8)
    kwargs = OPTIONS[options]()
    leaves = [*x, *(value for value in kwargs.values() if getattr(value, "requires_grad", False))]
    expected = TORCH_ATTENTION(*x, **kwargs)
    expected_gradients = torch.autograd.grad(expected, leaves, cotangent)
    with ordered("cpu"), ordered("cpu"):  # as a decoder is differentiated within a denoiser's block
        query, key, value = x
        found = F.scaled_dot_product_attention(query=query, key=key, value=value, **kwargs)
        gradients = torch.autograd.grad(found, leaves, cotangent)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for one, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_heads_that_share_keys(flash):
    query, *rest = inputs()
    shared = [part.detach()[:, :2].clone().requires_grad_() for part in rest]
    found = {}
    for scope in (None, ordered("cpu")):
        leaves = [query, *shared]
        if scope is None:
            result = TORCH_ATTENTION(*leaves, enable_gqa=True)
            found["torch"] = torch.autograd.grad(result.sin().sum(), leaves)
        else:
            with scope:
                result = F.scaled_dot_product_attention(*leaves, enable_gqa=True)
                found["ours"] = torch.autograd.grad(result.sin().sum(), leaves)
    for one, other in zip(found["ours"], found["torch"], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


PADS = {2: (1, 2), 3: (2, 0, 1, 2), 4: (1, 1, 2, 2), 5: (1, 2, 0, 1, 2, 1)}


@pytest.mark.parametrize("mode", ["replicate", "reflect", "constant"])
@pytest.mark.parametrize("ndim", PADS)
def test_padding_and_its_gradient_are_torch_s(mode, ndim):
    x = numbers(1, *(2, 3, 4, 5, 6)[:ndim]).requires_grad_()
    pad = PADS[ndim]
    expected = TORCH_PAD(x, pad, mode)
    with ordered("cpu"):
        found = F.pad(x, pad, mode)
        assert torch.equal(found, expected)
        cotangent = numbers(2, *expected.shape)
        pairs = [torch.autograd.grad(value, x, cotangent)[0] for value in (found, expected)]
    torch.testing.assert_close(*pairs, rtol=1e-12, atol=1e-12)


# --- switches -----------------------------------------------------------------------------------------------------


def test_only_flash_attention_runs_under_the_deterministic_switch(monkeypatch):
    monkeypatch.setattr(ordered_module, "takes_flash", lambda *_: True)
    convolution = nn.Conv2d(4, 4, 3, padding=1).double()
    x = numbers(1, 1, 4, 8, 8)

    def network(x: Tensor) -> Tensor:
        y = convolution(x).flatten(2).mT[:, None].contiguous()
        return F.scaled_dot_product_attention(y, y, y.sin()).matmul(numbers(2, 4, 4))

    with ordered("cpu"), linearised(network, x) as (value, pull), Recorder() as recorder:
        pull(torch.ones_like(value), keep=True)
        pull(torch.ones_like(value))
    assert recorder.seen.pop(FLASH) == {(2, False, True, False)}
    assert recorder.seen.keys() >= {"aten.convolution_backward.default", "aten.mm.default"}
    recorder.seen.pop("aten.detach.default")  # of the tensors that flash attention saved
    assert set.union(*recorder.seen.values()) == {(0, True, True, False)}


@pytest.mark.parametrize("before", [0, 1, 2])
@pytest.mark.parametrize("broken", [FLASH, "aten.mul.Tensor"])
def test_a_backward_pass_that_fails_leaves_no_switch_on(monkeypatch, broken, before):
    """Within the block too: the same run goes on with less memory."""
    monkeypatch.setattr(ordered_module, "takes_flash", lambda *_: True)

    def attend(x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(3 * x, x, x)

    torch.set_deterministic_debug_mode(before)
    try:
        with ordered("cpu"):
            inside = settings()
            with (
                pytest.raises(torch.OutOfMemoryError),
                linearised(attend, numbers(1, 1, 2, 3, 8)) as (value, pull),
                Recorder(broken),
            ):
                pull(torch.ones_like(value))
            assert settings() == inside
        assert torch.get_deterministic_debug_mode() == before
    finally:
        torch.set_deterministic_debug_mode(0)


@pytest.mark.parametrize("width", [8, 5])
def test_flash_attention_under_another_name_is_not_used(monkeypatch, width):
    """Its sums would silently have another order each time."""
    monkeypatch.setattr(ordered_module, "takes_flash", lambda *_: True)
    x = numbers(1, 1, 2, 3, width).requires_grad_()
    with ordered("cpu"):
        assert "Flash" in F.scaled_dot_product_attention(x, x, x).grad_fn.name()
        monkeypatch.setattr(ordered_module, "_FLASH", "another name")
        assert "OrderedAttention" in F.scaled_dot_product_attention(x, x, x).grad_fn.name()


def test_flash_attention_is_found_behind_a_cut():
    """On CUDA, heads of odd widths are padded, and the result is cut."""
    x = numbers(1, 1, 2, 3, 8).requires_grad_()
    result = TORCH_ATTENTION(x, x, x)
    for one in (result, result[..., :5]):
        assert ordered_module._flash_node(one) is result.grad_fn
    assert ordered_module._flash_node(result.sin().cos()) is None
    assert ordered_module._flash_node(x * 1) is None


@pytest.mark.parametrize("error", [ValueError, torch.OutOfMemoryError, KeyboardInterrupt])
def test_an_error_puts_everything_back(error):
    cudnn: Any = torch.backends.cudnn
    cudnn.benchmark = True
    try:
        with host_differentiable(nn.Linear(1, 1)):
            assert settings()[2:] == (True, False)
        with pytest.raises(error), host_differentiable(nn.Linear(1, 1)):
            raise error
        assert settings()[2:] == (False, True)
    finally:
        cudnn.benchmark = False


# --- networks of the host -----------------------------------------------------------------------------------------


# One family in three, in turn with and without checkpointing; all of them, both ways, take long.
RUNS = [
    (name, checkpointing)
    if name not in LONG and number % 6 == 3 * checkpointing
    else pytest.param(name, checkpointing, marks=pytest.mark.long)
    for number, name in enumerate(SUPPORTED)
    for checkpointing in (False, True)
]


@pytest.mark.parametrize(("name", "checkpointing"), RUNS)
def test_ordered_sums_change_no_gradient(monkeypatch, name, checkpointing):
    """With flash attention where a call has no mask, and without it."""
    family = family_of(name)
    expected = gradients_of_a_run(family, checkpointing)
    monkeypatch.setattr(differentiable, "ordered", partial(ordered, "cpu"))
    for takes in (True, False):
        monkeypatch.setattr(
            ordered_module, "takes_flash", lambda q, k, v, mask, *_, t=takes: t and mask is None
        )
        found = gradients_of_a_run(family, checkpointing)
        for one, other in zip(found, expected, strict=True):
            assert (one - other).abs().max() <= 1e-3 * other.abs().max() > 0


def test_a_guided_step_runs_under_the_settings_and_leaves_none(on_processors, monkeypatch):
    monkeypatch.setattr(ordered_module, "takes_flash", lambda *_: True)
    recorder, plain = Recorder(), torch.autograd.grad

    def recorded(*args: Any, **kwargs: Any) -> Any:
        with recorder:
            return plain(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", recorded)
    family = family_of("sd15")
    sample(family, guided(family, encoder_of(), through_denoiser=True), steps=3)
    assert recorder.seen.pop(FLASH) == {(2, False, True, False)}
    assert recorder.seen["aten.convolution_backward.default"] == {(0, True, True, False)}


def test_a_network_that_writes_into_saved_tensors(flash):
    """Attention's inputs are overwritten after it."""

    def network(x: Tensor, inside: bool) -> Tensor:
        y = 2 * x
        z = F.scaled_dot_product_attention(y, y, y)
        if inside:
            y.mul_(0)
        return z

    x = numbers(1, 1, 2, 3, 8)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(network(leaf, False).sum(), leaf)
    with ordered("cpu"), linearised(lambda x: network(x, True), x, writing_in_place()) as (value, pull):
        found = pull(torch.ones_like(value))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


def test_a_decoder_uses_torch_s_attention_instead_of_xformers(tiny):
    module = tiny.vae.first_stage_model
    blocks = [part for part in module.modules() if isinstance(part, autoencoder.AttnBlock)]
    assert blocks
    chosen = [block.optimized_attention for block in blocks]
    for block in blocks:
        block.optimized_attention = autoencoder.xformers_attention
    with vae_torch_attention(module):
        assert all(block.optimized_attention is autoencoder.pytorch_attention for block in blocks)
    with pytest.raises(KeyError), vae_torch_attention(module):
        raise KeyError
    assert all(block.optimized_attention is autoencoder.xformers_attention for block in blocks)
    for block, own in zip(blocks, chosen, strict=True):
        block.optimized_attention = own
