"""Dynamic VRAM: how the host streams weights, and the state it leaves on modules."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .required import BaseModel


def is_dynamic(patcher: Any) -> bool:
    """Whether the host streams these weights through buffers that it reuses at any time."""
    # the oldest host has no dynamic patchers
    return hasattr(patcher, "is_dynamic") and patcher.is_dynamic()


def is_streamed(patcher: Any) -> bool:
    """Whether some of these weights are not on the device now: a backward pass would read wrong weights, or none.

    The host cannot stream layers of other classes than its own, and may leave some of them behind without recording it.
    """
    if is_dynamic(patcher) or patcher.model.model_lowvram:
        return True
    return any(weight.device.type != patcher.load_device.type for weight in patcher.model.parameters())


# What dynamic VRAM leaves on modules: native memory handles, and placeholders for the weights in that memory.
_STREAMING_STATE = {
    *(
        "dynamic_pins",
        "dynamic_vbars",
        "dynamic_patchers",
        "_v",
        "_v_weight",
        "_v_bias",
        "_v_signature",
        "_pins",
    ),
    *("_pin_state", "_prefetch", "weight_lowvram_function", "bias_lowvram_function"),
    # how much of a module is loaded, for which patches, by which patcher
    *("model_loaded_weight_memory", "lowvram_patch_counter", "model_lowvram", "current_weight_patches_uuid"),
    *("model_offload_buffer_memory", "current_patcher", "comfy_patched_weights"),
}


@contextmanager
def without_streaming_state(module: nn.Module) -> Iterator[None]:
    """Within the block, a module of a dynamic patcher has no streaming state."""
    taken = []
    try:
        for part in module.modules():
            held = _STREAMING_STATE & vars(part).keys()
            taken.extend([(part, name, vars(part).pop(name)) for name in held])
        yield
    finally:
        for part, name, value in taken:
            vars(part)[name] = value


class HostWeight(NamedTuple):
    """A parameter or buffer of a module of the host.

    Attributes:
        module, name: the module that owns it, and its name there.
        dtype: what the module computes in, or None if the host has not recorded it.
    """

    module: nn.Module
    name: str
    tensor: Tensor
    dtype: torch.dtype | None


def weights_of(module: nn.Module) -> Iterator[HostWeight]:
    """Every weight of a module; weights that are created lazily and were never filled are left out."""
    for part in module.modules():
        for name, tensor in (*part._parameters.items(), *part._buffers.items()):
            if tensor is not None:
                yield HostWeight(part, name, tensor, getattr(part, f"{name}_comfy_model_dtype", None))


def not_loaded_yet(module: Any, device: torch.device) -> None:
    """Reset a module that was copied from a dynamic patcher, so that a plain patcher can take it."""
    for part in module.modules():
        if hasattr(part, "comfy_cast_weights"):
            part.comfy_cast_weights = True  # a weight without a recorded dtype is cast when it is used
            vars(part).pop("weight_function", None)
            vars(part).pop("bias_function", None)
    if "device" in vars(module):
        module.device = device
    if isinstance(module, BaseModel):
        module.current_patcher = None


def patcher_like(patcher: Any, base: Any, rebound: Callable[[Any], Any]) -> Any:
    """A plain patcher with the patches of the dynamic `patcher` and the weights of the plain `base`.

    Args:
        rebound: maps an attribute patch or a wrapper to its replacement; None drops a wrapper.
    """
    twin = patcher.clone(disable_dynamic=True, model_override=base.get_clone_model_override())
    # once the twin is gone, the host must count the base as loaded, not the dynamic patcher
    twin.parent = base
    twin.size = base.model_size()
    twin.is_injected = False
    twin.object_patches = {name: rebound(patch) for name, patch in twin.object_patches.items()}
    for keys in twin.wrappers.values():
        for key, wrappers in keys.items():
            keys[key] = [new for new in map(rebound, wrappers) if new is not None]
    return twin
