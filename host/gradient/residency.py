"""Resident weights, as a backward pass needs them: complete, in one place, in the dtype that the host computes in.

On NVIDIA cards ComfyUI streams weights by default (dynamic VRAM): they stay in the file, and pages of them are copied into
shared buffers while a layer runs. The backward pass would find other weights there. So whatever is differentiated gets a
second, plain patcher. Its module is a copy that shares the file's tensors but no native handle, so that nothing is read
again and nothing is freed twice.
"""

import copy
from collections.abc import Iterable
from functools import partial
from types import FunctionType, MethodType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from ...jepa_core.precision import as_weight, same_storage
from ..comfy.memory import has_room, is_out_of_memory, load_whole, unload
from ..comfy.models import injects
from ..comfy.required import VAE, ModelPatcher, load_models_gpu
from ..comfy.streaming import (
    HostWeight,
    is_dynamic,
    is_streamed,
    not_loaded_yet,
    patcher_like,
    weights_of,
    without_streaming_state,
)
from .compiled import as_written, closure_of, compiles


class _Plain(NamedTuple):
    """A plain patcher for the weights of a dynamic one, and id -> copy for the parts of its module."""

    patcher: Any
    twins: dict[int, Any]

    def rebound(self, patch: Any) -> Any:
        """A patch or wrapper for the copy: bound to the copied modules, uncompiled. None drops a wrapper."""
        if isinstance(patch, nn.Module):
            patch = as_written(patch)
        if compiles(patch):
            return None
        if isinstance(patch, MethodType):
            return MethodType(patch.__func__, self.rebound(patch.__self__))
        return self.twins.get(id(patch), patch)


# For each module of a dynamic patcher. Patches belong to clones of the patchers; weights are copied once, and stay loaded
# from one queue to the next.
_plain: WeakKeyDictionary[nn.Module, _Plain] = WeakKeyDictionary()


def _plain_of(patcher: Any) -> _Plain:
    if patcher.model not in _plain:
        module, twins = _copied(patcher)
        plain = ModelPatcher(module, patcher.load_device, patcher.offload_device)
        _plain[patcher.model] = _Plain(plain, twins)
    return _plain[patcher.model]


def resident(patcher: Any) -> Any:
    """Return a patcher with the same patches whose weights stay in place. A plain patcher is returned unchanged."""
    if not is_dynamic(patcher):
        return patcher
    plain = _plain_of(patcher)
    return patcher_like(patcher, plain.patcher, plain.rebound)


def bound_to_streamed(patcher: Any) -> str | None:
    """A patch that a copy of a MODEL's weights would lose, as a line for users, or None."""
    if not is_dynamic(patcher):
        return None
    if injects(patcher):
        return "a LoRA in bypass mode is bound to weights that the host streams"
    originals = {id(part) for part in patcher.model.modules()}
    if any(_holds(patch, originals) for patch in patcher.object_patches.values()):
        return "a patch of another node is bound to weights that the host streams"
    return None


def _holds(function: Any, objects: set[int]) -> bool:
    """Whether one of these objects (ids) is a closure variable or bound argument of a function."""
    if isinstance(function, MethodType):
        function = function.__func__  # its __self__ can be replaced
    if isinstance(function, partial):
        return any(
            id(part) in objects for part in (function.func, *function.args, *function.keywords.values())
        )
    return any(id(content) in objects for _, content in closure_of(function))


def resident_vae(vae: Any) -> Any:
    """Return a VAE with the same weights, which stay in place."""
    if not is_dynamic(vae.patcher):
        return vae
    twin = copy.copy(vae)
    twin.patcher = resident(vae.patcher)
    twin.first_stage_model = twin.patcher.model
    return twin


class ResidentParts:
    """Copies the arguments of a sampler, with every dynamic patcher in them replaced by a resident one.

    Dicts, lists, tuples and the attributes of objects are searched: chained ControlNets, GLIGEN, model patches, their bound
    methods, patches that hold patches. An object without a dynamic patcher is not copied. Each object has one copy.
    """

    def __init__(self) -> None:
        self._seen: dict[int, tuple[Any, Any]] = {}  # id -> (an object, its replacement)
        self._twins: dict[int, Any] = {}  # id -> copy, for parts of replaced patchers' modules

    def __call__(self, value: Any) -> Any:
        if id(value) in self._twins:
            return self._twins[id(value)]
        if id(value) not in self._seen:
            self._seen[id(value)] = (value, value)  # chains may be cyclic
            self._seen[id(value)] = (value, self._copy(value))
        return self._seen[id(value)][1]

    def _copy(self, value: Any) -> Any:
        if isinstance(value, ModelPatcher):
            return self._patcher(value)
        if isinstance(value, dict):
            items = {key: self(item) for key, item in value.items()}
            if not _differs(items.values(), value.values()):
                return value
            table = copy.copy(value)
            table.update(items)
            return table
        if type(value) in (list, tuple):
            parts = [self(item) for item in value]
            return type(value)(parts) if _differs(parts, value) else value
        if isinstance(value, MethodType):
            owner = self(value.__self__)
            return value if owner is value.__self__ else MethodType(value.__func__, owner)
        if isinstance(value, (Tensor, nn.Module, VAE, type, FunctionType)) or not hasattr(value, "__dict__"):
            return value
        return self._object(value)

    def _patcher(self, patcher: Any) -> Any:
        if is_dynamic(patcher):
            self._twins |= _plain_of(patcher).twins
        return resident(patcher)

    def _object(self, holder: Any) -> Any:
        attributes = vars(holder)
        # patchers first: other attributes may refer to parts of their modules
        order = sorted(attributes, key=lambda name: not isinstance(attributes[name], ModelPatcher))
        new = {name: self(attributes[name]) for name in order if _may_hold(name, attributes[name])}
        changed = {name: part for name, part in new.items() if part is not attributes[name]}
        if not changed:
            return holder
        twin = copy.copy(holder)
        vars(twin).update(changed)
        return twin


def _may_hold(name: str, part: Any) -> bool:
    """Whether an attribute may be a patcher, a part of its module, or another patch."""
    kinds = (ModelPatcher, nn.Module, dict, list, tuple, MethodType)
    return isinstance(part, kinds) or name == "previous_controlnet" or hasattr(part, "models")


def _differs(new: Iterable[Any], old: Iterable[Any]) -> bool:
    return any(one is not other for one, other in zip(new, old, strict=True))


def keep_whole(needed: Iterable[Any], others: Iterable[Any]) -> list[Any]:
    """Have the host load all weights of `needed`, making room for them; returns the patchers that are still streamed.

    In a second run the device is still full of what the first one loaded, and the host then loads a model only in part
    although there could be room for all of it.

    Args:
        needed: patchers of what is differentiated. others: patchers of what the run calls without a gradient.
    """
    needed = list(needed)
    # patchers of the same module count once
    together = list({id(patcher.model): patcher for patcher in (*others, *needed)}.values())
    in_part = [patcher for patcher in needed if not is_dynamic(patcher) and is_streamed(patcher)]
    if in_part:
        for patcher in in_part:
            patcher.detach()  # otherwise the host takes it as loaded and adds nothing
        try:
            load_whole(together)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            load_models_gpu(together)  # as much as fits
    return [patcher for patcher in needed if is_streamed(patcher)]


def fits_whole(*patchers: Any) -> bool:
    """Whether all weights of these patchers fit on their device at once, if it holds nothing else."""
    return has_room(patchers[0].load_device, sum(map(_size_when_resident, patchers)))


def _size_when_resident(patcher: Any) -> int:
    if not is_dynamic(patcher):
        return int(patcher.model_size())
    return sum(
        weight.tensor.numel() * weight.dtype.itemsize
        if weight.dtype and _is_cast(weight)
        else weight.tensor.nbytes
        for weight in weights_of(patcher.model)
    )


def _is_cast(weight: HostWeight) -> bool:
    """Whether a weight is cast to its module's dtype; quantised tensors and other subclasses stay as they are."""
    plain = type(weight.tensor) in (Tensor, nn.Parameter)
    return plain and weight.dtype is not None and weight.tensor.is_floating_point()


def _copied(patcher: Any) -> tuple[nn.Module, dict[int, Any]]:
    """A copy of a dynamic patcher's module, with its weights in the dtype that each part computes in.

    Returns:
        The copy, and id -> copy for each part of the original.
    """
    unload(patcher)
    twins: dict[int, Any] = {}
    for weight in weights_of(patcher.model):
        if weight.tensor.is_meta:  # not in the file; the host fills it in
            continue
        own = same_storage(weight.tensor.to(patcher.offload_device))
        if _is_cast(weight):
            own = own.to(weight.dtype)
        is_parameter = weight.name in weight.module._parameters
        twins[id(weight.tensor)] = as_weight(own) if is_parameter else own
    with without_streaming_state(patcher.model):
        module: nn.Module = twin_of(patcher.model, twins)
    not_loaded_yet(module, patcher.offload_device)
    return module, {id(part): twins[id(part)] for part in patcher.model.modules()}


def twin_of(value: Any, twins: dict[int, Any]) -> Any:
    """Copy modules, the containers in them, and their bound methods; everything else is shared.

    Not copy.deepcopy, which fails for the host's configurations and for some attributes that other packs add to modules.

    Args:
        twins: id -> copy; contains the weights at first, and is extended.
    """
    if id(value) in twins:
        return twins[id(value)]
    if isinstance(value, nn.Module):
        module = twins[id(value)] = type(value).__new__(type(value))
        vars(module).update((name, twin_of(part, twins)) for name, part in vars(value).items())
        return module
    if isinstance(value, dict):
        table = twins[id(value)] = copy.copy(value)
        for key, part in value.items():
            table[key] = twin_of(part, twins)
        return table
    if type(value) in (list, tuple):
        return type(value)(twin_of(part, twins) for part in value)
    if isinstance(value, MethodType):
        return MethodType(value.__func__, twin_of(value.__self__, twins))
    return value


def refuse_streamed(patcher: Any, what: str) -> None:
    """Raise if some of these weights are not on the device: a backward pass would be wrong.

    Raises:
        ValueError: names the model and the fix.
    """
    if is_streamed(patcher):
        raise ValueError(
            f"JEPA guidance cannot differentiate {what} while its weights are streamed from system memory "
            "(the gradients would be silently wrong). Free memory: use a smaller model, or fewer models in the graph."
        )
