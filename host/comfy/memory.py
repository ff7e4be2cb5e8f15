"""Loading and unloading models, and recognising out-of-memory errors."""

from typing import Any

import comfy.model_management
import torch

from .required import LoadedModel, free_memory, load_models_gpu


def unload(patcher: Any) -> None:
    """Have the host undo its changes to this patcher's module: moved and patched weights, patches, injections."""
    loaded = comfy.model_management.current_loaded_models
    for entry in [entry for entry in loaded if entry.model is not None and entry.model.is_clone(patcher)]:
        entry.model_unload()
        loaded.remove(entry)


def has_room(device: torch.device, size: float) -> bool:
    """Whether `size` bytes of weights fit on the device when it holds nothing else."""
    management = comfy.model_management
    return bool(size + management.minimum_inference_memory() <= management.get_total_memory(device))


def load_whole(patchers: list[Any]) -> None:
    """Have the host load these models now, and all weights of the plain ones. Raises if the device is full."""
    load_models_gpu(patchers, force_full_load=True)


def unload_idle(guider: Any) -> int:
    """Unload every model that this run does not need; returns how many were unloaded."""
    used = [guider.model_patcher, *guider.loaded_models]
    used += [part for patcher in used for part in patcher.model_patches_models()]
    keep = [LoadedModel(patcher) for patcher in used]
    return len(free_memory(1e32, guider.model_patcher.load_device, keep))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device, or the system, is out of memory."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    ask = getattr(comfy.model_management, "is_oom", None)  # newer hosts only
    if ask is not None and ask(error):
        return True
    # CPUs and Apple's GPUs raise a plain RuntimeError
    text = str(error)
    return isinstance(error, RuntimeError) and ("DefaultCPUAllocator" in text or "out of memory" in text)
