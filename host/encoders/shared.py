"""Models from files, in patchers of the host. Loaders of a file that is still in use get the same weights."""

from collections.abc import Callable, Iterable
from pathlib import Path
from weakref import WeakValueDictionary

from torch import nn

from ..comfy.required import ModelPatcher, get_torch_device, unet_offload_device

_loaded: WeakValueDictionary[tuple, ModelPatcher] = WeakValueDictionary()


def shared_patcher(
    kind: str, file: Path, others: Iterable[Path], load: Callable[[], nn.Module]
) -> ModelPatcher:
    """A patcher around what `load` returns, or the one of an earlier call if it is in use and no file has changed.

    Args:
        kind: tells models apart that are loaded from the same file.
        file: the weights.
        others: the files that are read with them, whether or not they exist.
    """
    states = [part.stat() for part in (file, *others) if part.is_file()]
    key = (kind, file.resolve(), *((state.st_mtime_ns, state.st_size) for state in states))
    patcher = _loaded.get(key)
    if patcher is None:
        # The plain patcher on purpose: a dynamic one streams weights through buffers that are overwritten before
        # the backward pass reads them.
        patcher = ModelPatcher(load(), load_device=get_torch_device(), offload_device=unet_offload_device())
        _loaded[key] = patcher
    return patcher
