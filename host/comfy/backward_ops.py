"""Operations and attention of the host that have a backward pass."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

import comfy.cli_args
import comfy.model_management
import torch
from torch import Tensor, nn

from .required import attention_pytorch, vae_attention_pytorch, vae_attention_xformers

try:
    from comfy_kitchen.backends.eager import rope as plain_rotary
except ImportError:  # comfy-kitchen is optional
    plain_rotary = None


# comfy-kitchen's fused rotary embeddings have no backward pass. Newer hosts avoid some of them in training mode (but
# not in Cosmos Predict 2, Anima, Ernie and JoyImage), 0.9.2 avoids none.
_ROTARY = ("apply_rope", "apply_rope_split_half", "rms_rope", "rms_rope_split_half")


def _give_a_backward(name: str, plain: Callable) -> None:
    """Register a backward pass for a comfy-kitchen operation, by differentiating its plain torch version.

    This applies to the whole process; the forward pass is unchanged.
    """

    def keep(ctx: Any, inputs: tuple, output: Any) -> None:
        ctx.places = [i for i, value in enumerate(inputs) if isinstance(value, Tensor)]
        ctx.others = [None if isinstance(value, Tensor) else value for value in inputs]
        ctx.save_for_backward(*(inputs[i] for i in ctx.places))

    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        inputs: list[Any] = list(ctx.others)
        for place, tensor in zip(ctx.places, ctx.saved_tensors, strict=True):
            inputs[place] = tensor.detach().requires_grad_(ctx.needs_input_grad[place])
        wanted = [i for i in ctx.places if ctx.needs_input_grad[i]]
        with torch.enable_grad():
            results = plain(*inputs)
        results = results if isinstance(results, tuple) else (results,)
        found = torch.autograd.grad(results, [inputs[i] for i in wanted], cotangents, allow_unused=True)
        gradients: list[Tensor | None] = [None] * len(inputs)
        for place, gradient in zip(wanted, found, strict=True):
            gradients[place] = gradient
        return tuple(gradients)

    torch.library.register_autograd(f"comfy_kitchen::{name}", backward, setup_context=keep)


for _base in _ROTARY:
    for _name in (_base, _base + "1"):
        if hasattr(plain_rotary, _name) and hasattr(torch.ops.comfy_kitchen, _name):
            # newer versions have in-place operations, which cannot get one
            with suppress(RuntimeError):
                _give_a_backward(_name, getattr(plain_rotary, _name))


@contextmanager
def training_operations() -> Iterator[None]:
    """Within the block, the host uses operations that have a backward pass. Its switches are global.

    `in_training` selects those operations. `disable_comfy_compiler` stops the host's own compiler from reusing memory
    that a backward pass still reads. Older hosts lack one or both.
    """
    switches = ((comfy.model_management, "in_training"), (comfy.cli_args.args, "disable_comfy_compiler"))
    before = [(owner, name, getattr(owner, name)) for owner, name in switches if hasattr(owner, name)]
    try:
        for owner, name, _ in before:
            setattr(owner, name, True)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


# The names under which modules of the host and of other packs import the attention chosen at startup.
_CHOSEN_ATTENTION = ("optimized_attention", "optimized_attention_masked")


@contextmanager
def torch_attention() -> Iterator[None]:
    """Within the block, every module uses torch's attention, which has a backward pass, instead of the chosen one.

    An override in the model options reaches only calls that pass the options on, and PixArt, HunyuanDiT, Ernie and others
    have calls that do not. Sage, flash and comfy-kitchen kernels have no backward pass: a whole branch would be missing.
    """
    places = [
        (vars(module), name, vars(module)[name])
        for module in list(sys.modules.values())
        for name in _CHOSEN_ATTENTION
        if isinstance(module, ModuleType) and callable(vars(module).get(name))
    ]
    try:
        for table, name, _ in places:
            table[name] = attention_pytorch
        yield
    finally:
        for table, name, chosen in places:
            table[name] = chosen


@contextmanager
def vae_torch_attention(*modules: nn.Module) -> Iterator[None]:
    """Within the block, decoders use torch's attention instead of xformers', whose backward pass has no fixed order."""
    places = [
        vars(part)
        for module in modules
        for part in module.modules()
        if vars(part).get("optimized_attention") is vae_attention_xformers
    ]
    try:
        for table in places:
            table["optimized_attention"] = vae_attention_pytorch
        yield
    finally:
        for table in places:
            table["optimized_attention"] = vae_attention_xformers
