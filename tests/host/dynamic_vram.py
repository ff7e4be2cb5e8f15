"""ComfyUI's dynamic VRAM on the CPU: its own classes and loaders, over a substitute for the native library.

Only the library (the compiled part of comfy_aimdo) and the functions that query the card are replaced. The rest is the
host's: files are memory-mapped, weights are assigned as stored, patchers are dynamic.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management as management
import comfy.model_patcher
import pytest
import torch

pytest.importorskip("comfy.memory_management")  # newer than the oldest host

import comfy_aimdo.control
import comfy_aimdo.host_buffer
import comfy_aimdo.model_mmap
import comfy_aimdo.model_vbar
import comfy_aimdo.vram_buffer

# With an index, unlike the device of CPU tensors, so the host takes it for another device.
CARD = torch.device("cpu", 0)
GIB = 1 << 30


class NativeLibrary:
    """The functions that comfy_aimdo calls: buffers, pages and mapped files, each with a handle that is freed once.

    Attributes:
        freed: how often each handle was freed. live: handle -> object.
    """

    def __init__(self) -> None:
        self.live: dict[int, Any] = {}
        self.freed: Counter[int] = Counter()
        self._handles = itertools.count(1)

    def _new(self, value: Any) -> int:
        handle = next(self._handles)
        self.live[handle] = value
        return handle

    def _free(self, handle: int) -> bool:
        self.freed[handle] += 1
        self.live.pop(handle, None)
        return True

    def get_devctx(self, device: int) -> int:
        return 1 + device

    def hostbuf_allocate(self, prewarm: int, most: int, cold: bool) -> int:
        return self._new("host buffer")

    def hostbuf_truncate(self, handle: int, size: int, unregister: bool) -> bool:
        return True

    def hostbuf_free(self, handle: int) -> None:
        self._free(handle)

    def vbar_allocate(self, context: int, size: int, device: int) -> int:
        return self._new(mmap.mmap(-1, max(size, 1)))

    def vbar_get(self, context: int, handle: int) -> int:
        return ctypes.addressof(ctypes.c_char.from_buffer(self.live[handle]))

    def vbar_free(self, context: int, handle: int) -> None:
        self._free(handle)

    def vbar_prioritize(self, context: int, handle: int, clamp: int) -> None: ...

    def vbar_loaded_size(self, context: int, handle: int) -> int:
        return 0

    def vbar_free_memory(self, context: int, handle: int, size: int) -> int:
        return 0

    def vbar_unpin(self, context: int, handle: int, offset: int, size: int) -> None: ...

    def model_mmap_allocate(self, path: bytes) -> int:
        with open(path, "rb") as file:
            descriptor = os.dup(file.fileno())
        return self._new((mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY), descriptor))

    def model_mmap_get(self, handle: int) -> int:
        return ctypes.addressof(ctypes.c_char.from_buffer(self.live[handle][0]))

    def model_mmap_get_file_handle(self, handle: int) -> int:
        return int(self.live[handle][1])

    def model_mmap_deallocate(self, handle: int) -> None:
        if handle in self.live:
            os.close(self.live[handle][1])
        self._free(handle)


# One per process, since objects are freed with their last user, which may be long after a test.
LIBRARY = NativeLibrary()


class Card:
    """A graphics card as the host sees it.

    Attributes:
        total: bytes of memory. taken: bytes used by other processes.
        dtype: what the host computes in unless the file says so.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.total = 24 * GIB
        self.taken = 0
        self.dtype = dtype

    def free(self) -> int:
        entries = [entry for entry in management.current_loaded_models if entry.model is not None]
        loaded = sum(entry.model_loaded_memory() for entry in entries)
        return self.total - self.taken - loaded


@contextmanager
def dynamic_vram(dtype: torch.dtype = torch.float32) -> Iterator[Card]:
    """Within the block, the host streams weights as it does on an NVIDIA card by default."""
    card = Card(dtype)
    patch = pytest.MonkeyPatch()
    management.unload_all_models()

    def is_processor(device: Any) -> bool:
        return bool(getattr(device, "type", None) == "cpu" and device.index is None)

    def free_memory(device: Any = None, torch_free_too: bool = False) -> Any:
        free = card.free()
        return (free, 0) if torch_free_too else free

    def fast_at(dtype: torch.dtype) -> Any:
        return lambda *_, **__: card.dtype == dtype

    for part in ("control", "host_buffer", "model_mmap", "model_vbar", "vram_buffer"):
        getattr(comfy_aimdo, part).lib = LIBRARY  # kept, for the same reason
    patch.setattr(comfy.memory_management, "aimdo_enabled", True)
    patch.setattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcherDynamic)
    patch.setattr(management, "get_torch_device", lambda: CARD)
    patch.setattr(management, "get_all_torch_devices", lambda *_, **__: [CARD])
    patch.setattr(management, "is_device_cpu", is_processor)
    patch.setattr(management, "get_free_memory", free_memory)
    patch.setattr(management, "get_total_memory", lambda *_, **__: card.total)
    patch.setattr(management, "should_use_fp16", fast_at(torch.float16))
    patch.setattr(management, "should_use_bf16", fast_at(torch.bfloat16))
    patch.setattr(management, "vram_state", management.VRAMState.NORMAL_VRAM)
    try:
        yield card
    finally:
        management.unload_all_models()
        patch.undo()
