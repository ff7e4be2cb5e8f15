"""What a network is built of. Networks of one structure take the same memory, such as two checkpoints of one kind."""

import hashlib
from collections.abc import Hashable
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

_PLAIN = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device)
# Parts, which are gone through one by one, and what the host's ModelPatcher notes on a network about its weights.
_LEFT_OUT = {
    "_modules",
    "current_patcher",
    "current_weight_patches_uuid",
    "dynamic_patchers",
    "dynamic_pins",
    "dynamic_vbars",
    "lowvram_patch_counter",
    "model_loaded_weight_memory",
    "model_lowvram",
    "model_offload_buffer_memory",
}


def structure_of(network: nn.Module) -> Hashable:
    """Equal for networks whose parts have the same classes, settings, and sizes of weights.

    A network with a part that cannot be compared, such as a function that another node put in, has a structure of its own.
    What it is built of when it is first asked for counts, as long as it lives.
    """
    if network not in _known:
        try:
            _known[network] = _digest(network)
        except TypeError:
            _known[network] = object()
    return _known[network]


_known: WeakKeyDictionary[nn.Module, Hashable] = WeakKeyDictionary()


def _digest(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, part in network.named_modules(remove_duplicate=False):
        own = {key: value for key, value in vars(part).items() if key not in _LEFT_OUT}
        digest.update(repr((name, _settings(type(part), set()), _settings(own, set()))).encode())
    return digest.hexdigest()


def _settings(value: Any, within: set[int]) -> Any:
    """What a value says about the structure. within: what it lies in. Raises TypeError for what cannot be compared."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Tensor):
        return _name(type(value)), tuple(value.shape), value.dtype
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        return _name(value)
    if id(value) in within:
        raise TypeError("it holds itself")
    within = within | {id(value)}
    if isinstance(value, list | tuple):
        return [_settings(one, within) for one in value]
    if isinstance(value, set | frozenset):
        return sorted(repr(_settings(one, within)) for one in value)
    if isinstance(value, dict):
        return [(_settings(key, within), _settings(one, within)) for key, one in value.items()]
    if callable(value) or not hasattr(value, "__dict__"):
        raise TypeError(f"a {type(value).__name__} cannot be compared")
    return _name(type(value)), _settings(vars(value), within)


def _name(value: Any) -> str:
    """The name of a class or function. Raises TypeError unless it is the only one of this name."""
    if "<" in value.__qualname__ or not isinstance(getattr(value, "__self__", None), ModuleType | None):
        raise TypeError(f"{value.__qualname__} may be one of many")
    return f"{value.__module__}.{value.__qualname__}"
