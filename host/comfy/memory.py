"""Loading and unloading models, and recognising out-of-memory errors."""

import gc
from typing import Any

import comfy.model_management
import torch

from .required import (
    LoadedModel,
    extra_reserved_memory,
    free_memory,
    get_free_memory,
    load_models_gpu,
    soft_empty_cache,
)
from .streaming import is_dynamic

# Parts of messages of libraries that run out of a device's memory without torch's own error.
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator",  # processors
    "out of memory",  # Apple's GPUs; CUDA's driver
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "unable to find an engine",  # cuDNN without room for a workspace
    "OUT_OF_DEVICE_MEMORY",  # Intel's GPUs
    "OUT_OF_RESOURCES",
    "not enough GPU video memory",  # DirectML
)


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


def room_beside(patchers: list[Any]) -> float:
    """Bytes of the device that are left for a run once these models are loaded whole; may be negative."""
    management = comfy.model_management
    device = patchers[0].load_device
    weights = sum(patcher.model_size() for patcher in patchers if patcher.load_device == device)
    return float(management.get_total_memory(device) - weights - extra_reserved_memory())


def load_whole(patchers: list[Any]) -> None:
    """Have the host load these models now, and all weights of the plain ones. Raises if the device is full."""
    load_models_gpu(patchers, force_full_load=True)


class HostRoom:
    """The memory of a run's device, as the host manages it. guider: the host's guider of this run."""

    def __init__(self, guider: Any) -> None:
        self._device = guider.model_patcher.load_device
        patchers = [guider.model_patcher, *guider.loaded_models]
        patchers += [part for patcher in patchers for part in patcher.model_patches_models()]
        # whatever a run uses stays: the host would not load it again before the next call
        self._used = [LoadedModel(patcher) for patcher in patchers]

    def free(self) -> int:
        """Bytes that are free once the host has moved away all that may go: unused models, and pages that it streams."""
        may_go = [
            entry
            for entry in comfy.model_management.current_loaded_models
            if entry.device == self._device
            and not entry.is_dead()
            and (entry not in self._used or is_dynamic(entry.model))
        ]
        moved = sum(entry.model_loaded_memory() for entry in may_go)
        return int(get_free_memory(self._device) + moved - extra_reserved_memory())

    def reserve(self, size: float) -> int:
        """Have the host unload unused models until `size` bytes are free; returns how many it unloaded."""
        return len(free_memory(size + extra_reserved_memory(), self._device, self._used))

    def unload_idle(self) -> int:
        """Unload every model that the run does not use; returns how many."""
        return self.reserve(1e32)


def give_back() -> None:
    """Free what is no longer used: reference cycles of a failed attempt, and torch's cached blocks."""
    gc.collect()
    soft_empty_cache()


def has_spilled(device: torch.device) -> bool:
    """Whether torch holds more memory than the device has: the driver moved some into the system's, which is very slow.

    NVIDIA's driver does so on Windows, instead of failing.
    """
    if device.type != "cuda":
        return False
    total = torch.cuda.get_device_properties(device).total_memory
    return torch.cuda.memory_reserved(device) > total


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device, or the system, is out of memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    ask = getattr(comfy.model_management, "is_oom", None)  # newer hosts only
    if ask is not None and ask(error):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(words in text for words in _OUT_OF_MEMORY)
