"""Dynamic VRAM: how the host streams weights, and what it leaves on modules when it does."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .required import BaseModel


def is_dynamic(patcher: Any) -> bool:
    """Whether the host streams these weights through buffers that it uses again, as it pleases."""
    # a manager of that kind came after the oldest host
    return hasattr(patcher, "is_dynamic") and patcher.is_dynamic()


def is_streamed(patcher: Any) -> bool:
    """Whether some of these weights are not on the device now: a backward pass would read other weights, or none.

    Of layers that are not its own, which the host cannot stream, it may leave some behind without noting it.
    """
    if is_dynamic(patcher) or patcher.model.model_lowvram:
        return True
    return any(weight.device.type != patcher.load_device.type for weight in patcher.model.parameters())


# What dynamic VRAM leaves on modules: handles of native memory, and what stands for weights that lie in it.
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
    # and how much of a module is loaded, for which patches, by whom
    *("model_loaded_weight_memory", "lowvram_patch_counter", "model_lowvram", "current_weight_patches_uuid"),
    *("model_offload_buffer_memory", "current_patcher", "comfy_patched_weights"),
}


@contextmanager
def without_streaming_state(module: nn.Module) -> Iterator[None]:
    """Within the block, a module of a dynamic patcher has nothing of the streaming."""
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
    """A parameter or buffer of a module of the host's.

    Attributes:
        module, name: whose it is, and under which name.
        dtype: what its module computes in, or None where the host has not written it down.
    """

    module: nn.Module
    name: str
    tensor: Tensor
    dtype: torch.dtype | None


def weights_of(module: nn.Module) -> Iterator[HostWeight]:
    """Every weight that is there; lazily made ones that no file filled are not."""
    for part in module.modules():
        for name, tensor in (*part._parameters.items(), *part._buffers.items()):
            if tensor is not None:
                yield HostWeight(part, name, tensor, getattr(part, f"{name}_comfy_model_dtype", None))


def not_loaded_yet(module: Any, device: torch.device) -> None:
    """Make a module that was copied from a dynamic patcher one that a plain patcher can begin with."""
    for part in module.modules():
        if hasattr(part, "comfy_cast_weights"):
            part.comfy_cast_weights = True  # what the host has not written down is cast when it is used
            vars(part).pop("weight_function", None)
            vars(part).pop("bias_function", None)
    if "device" in vars(module):
        module.device = device
    if isinstance(module, BaseModel):
        module.current_patcher = None


def patcher_like(patcher: Any, base: Any, rebound: Callable[[Any], Any]) -> Any:
    """A plain patcher with the patches of a dynamic one, for the weights of another plain one.

    Args:
        rebound: what replaces a patch of an attribute, or a wrapper; None drops a wrapper.
    """
    twin = patcher.clone(disable_dynamic=True, model_override=base.get_clone_model_override())
    # when the twin goes, the host takes the base for what it has loaded, and not the dynamic patcher
    twin.parent = base
    twin.size = base.model_size()
    twin.is_injected = False
    twin.object_patches = {name: rebound(patch) for name, patch in twin.object_patches.items()}
    for keys in twin.wrappers.values():
        for key, wrappers in keys.items():
            keys[key] = [new for new in map(rebound, wrappers) if new is not None]
    return twin
