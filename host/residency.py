"""Weights as a backward pass needs them: whole, in place, in memory of their own, in the dtype that the host computes in.

On NVIDIA cards ComfyUI streams weights by default (dynamic VRAM): they stay in the file, pages of them are copied into
shared buffers as layers run, and are dropped again. A backward pass that comes later reads other weights. So whatever is
differentiated gets a second, plain patcher. Its module is a copy that shares the tensors of the file and no native
handle, so that nothing is read again and nothing is freed twice.
"""

import copy
from collections.abc import Iterable
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from ..jepa_core.precision import as_weight, same_storage
from .internals import (
    HostWeight,
    ModelPatcher,
    as_from_the_file,
    has_room,
    is_dynamic,
    is_out_of_memory,
    is_streamed,
    load_models_gpu,
    load_whole,
    not_loaded_yet,
    patcher_like,
    weights_of,
)

# The plain patcher of each module that a dynamic one holds. Patches come and go with clones of either; the weights
# are copied once, and stay loaded from one queue to the next.
_plain: WeakKeyDictionary[nn.Module, ModelPatcher] = WeakKeyDictionary()


def resident(patcher: Any) -> Any:
    """Return a patcher for the same weights and patches whose weights stay in place; a plain one is returned as it is."""
    if not is_dynamic(patcher):
        return patcher
    if patcher.model not in _plain:
        module = _copied(patcher)
        _plain[patcher.model] = ModelPatcher(module, patcher.load_device, patcher.offload_device)
    return patcher_like(patcher, _plain[patcher.model])


def resident_vae(vae: Any) -> Any:
    """Return a VAE for the same weights whose weights stay in place."""
    if not is_dynamic(vae.patcher):
        return vae
    twin = copy.copy(vae)
    twin.patcher = resident(vae.patcher)
    twin.first_stage_model = twin.patcher.model
    return twin


def resident_parts(value: Any, found: dict[int, Any]) -> Any:
    """Copy what a sampler is given, with every dynamic patcher in it replaced by a resident one.

    Dicts, lists and tuples are searched, and objects that hold a patcher as an attribute: ControlNets and those
    chained to them, GLIGEN, model patches, bound methods of such. What holds none is kept, not copied.

    Args:
        found: id -> (an object that was seen, what replaces it). Start with an empty dict; afterwards it holds all.
    """
    if id(value) not in found:
        found[id(value)] = (value, value)  # a chain may come back to where it began
        found[id(value)] = (value, _with_resident_parts(value, found))
    return found[id(value)][1]


def _with_resident_parts(value: Any, found: dict[int, Any]) -> Any:
    if isinstance(value, ModelPatcher):
        return resident(value)
    if isinstance(value, dict):
        items = {key: resident_parts(item, found) for key, item in value.items()}
        return type(value)(items) if _differs(items.values(), value.values()) else value
    if type(value) in (list, tuple):
        parts = [resident_parts(item, found) for item in value]
        return type(value)(parts) if _differs(parts, value) else value
    if isinstance(value, MethodType):
        owner = resident_parts(value.__self__, found)
        return value if owner is value.__self__ else MethodType(value.__func__, owner)
    if isinstance(value, (Tensor, nn.Module, type)) or not hasattr(value, "__dict__"):
        return value
    return _with_resident_attributes(value, found)


def _with_resident_attributes(holder: Any, found: dict[int, Any]) -> Any:
    """A shallow copy of an object with its patchers, the modules of these, and what is chained to it replaced."""
    changed, modules = {}, {}
    for name, part in vars(holder).items():
        if isinstance(part, ModelPatcher) or name == "previous_controlnet":
            new = resident_parts(part, found)
            if new is not part:
                changed[name] = new
                if isinstance(part, ModelPatcher):
                    modules[id(part.model)] = new.model
    for name, part in vars(holder).items():
        if id(part) in modules:
            changed[name] = modules[id(part)]
    if not changed:
        return holder
    twin = copy.copy(holder)
    vars(twin).update(changed)
    return twin


def _differs(new: Iterable[Any], old: Iterable[Any]) -> bool:
    return any(one is not other for one, other in zip(new, old, strict=True))


def keep_whole(needed: Iterable[Any], beside: Iterable[Any]) -> list[Any]:
    """Have the host load `needed` whole if it has not, making room for it; returns what is still streamed.

    A second run finds the room taken by what the first one left on the device, and the host then loads in part what it
    could load whole.

    Args:
        needed: patchers of what is differentiated. beside: of what the run calls without a gradient.
    """
    needed = list(needed)
    partial = [patcher for patcher in needed if not is_dynamic(patcher) and is_streamed(patcher)]
    if partial:
        for patcher in partial:
            patcher.detach()  # the host adds nothing to what it does not know to be partial
        try:
            load_whole([*needed, *beside])
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            load_models_gpu([*needed, *beside])  # as much as there is room for
    return [patcher for patcher in needed if is_streamed(patcher)]


def plain_patchers(options: Any) -> list[Any]:
    """The plain patchers of the patches in the host's model options."""
    found: dict[int, Any] = {}
    resident_parts(options, found)
    holders = [holder for holder, _ in found.values() if not isinstance(holder, ModelPatcher)]
    held = [part for holder in holders for part in getattr(holder, "__dict__", {}).values()]
    return [part for part in held if isinstance(part, ModelPatcher) and not is_dynamic(part)]


def fits_whole(*patchers: Any) -> bool:
    """Whether the device of these patchers could hold all their weights at once, if it held nothing else."""
    return has_room(patchers[0].load_device, sum(map(_size_when_resident, patchers)))


def _size_when_resident(patcher: Any) -> int:
    if not is_dynamic(patcher):
        return int(patcher.model_size())
    return sum(
        weight.original.numel() * weight.dtype.itemsize
        if weight.dtype and _is_cast(weight)
        else weight.original.nbytes
        for weight in weights_of(patcher)
    )


def _is_cast(weight: HostWeight) -> bool:
    """Whether a weight has a dtype to be cast to; quantised tensors and subclasses of other packs stay as they are."""
    plain = type(weight.original) in (Tensor, nn.Parameter)
    return plain and weight.dtype is not None and weight.original.is_floating_point()


def _copied(patcher: Any) -> nn.Module:
    """A copy of a dynamic patcher's module, with the weights of the file in the dtype that each module computes in."""
    with as_from_the_file(patcher):
        twins: dict[int, Any] = {}
        for weight in weights_of(patcher):
            own = same_storage(weight.original.to(patcher.offload_device))
            if _is_cast(weight):
                own = own.to(weight.dtype)
            is_parameter = weight.name in weight.module._parameters
            twins[id(weight.current)] = as_weight(own) if is_parameter else own
        module: nn.Module = _twin(patcher.model, twins)
    not_loaded_yet(module, patcher.offload_device)
    return module


def _twin(value: Any, twins: dict[int, Any]) -> Any:
    """Copy modules, the containers that they hold, and their bound methods; all else is shared.

    Not copy.deepcopy: the host's configurations cannot be copied so, and neither can what other packs hang on modules.

    Args:
        twins: id -> what replaces an object; begins with the weights.
    """
    if id(value) in twins:
        return twins[id(value)]
    if isinstance(value, nn.Module):
        module = twins[id(value)] = type(value).__new__(type(value))
        vars(module).update((name, _twin(part, twins)) for name, part in vars(value).items())
        return module
    if isinstance(value, dict):
        table = twins[id(value)] = copy.copy(value)
        for key, part in value.items():
            table[key] = _twin(part, twins)
        return table
    if type(value) in (list, tuple):
        return type(value)(_twin(part, twins) for part in value)
    if isinstance(value, MethodType):
        return MethodType(value.__func__, _twin(value.__self__, twins))
    return value
