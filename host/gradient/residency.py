"""Weights as a backward pass needs them: whole, in place, in memory of their own, in the dtype that the host computes in.

On NVIDIA cards ComfyUI streams weights by default (dynamic VRAM): they stay in the file, pages of them are copied into
shared buffers as layers run, and are dropped again. A backward pass that comes later reads other weights. So whatever is
differentiated gets a second, plain patcher. Its module is a copy that shares the tensors of the file and no native
handle, so that nothing is read again and nothing is freed twice.
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
from .compiled import closure_of, compiles, is_compiled


class _Plain(NamedTuple):
    """A plain patcher for the weights of a dynamic one, and what replaces each part of its module (by id)."""

    patcher: Any
    twins: dict[int, Any]

    def rebound(self, patch: Any) -> Any:
        """A patch or wrapper as the copy needs it: on its own modules, as they were written and not compiled."""
        if is_compiled(patch):
            patch = patch.get_submodule("_orig_mod")
        if compiles(patch):
            return None
        if isinstance(patch, MethodType):
            return MethodType(patch.__func__, self.rebound(patch.__self__))
        return self.twins.get(id(patch), patch)


# Of each module that a dynamic patcher holds. Patches come and go with clones of either patcher; the weights are copied
# once, and stay loaded from one queue to the next.
_plain: WeakKeyDictionary[nn.Module, _Plain] = WeakKeyDictionary()


def _plain_of(patcher: Any) -> _Plain:
    if patcher.model not in _plain:
        module, twins = _copied(patcher)
        plain = ModelPatcher(module, patcher.load_device, patcher.offload_device)
        _plain[patcher.model] = _Plain(plain, twins)
    return _plain[patcher.model]


def resident(patcher: Any) -> Any:
    """Return a patcher for the same weights and patches whose weights stay in place; a plain one is returned as it is."""
    if not is_dynamic(patcher):
        return patcher
    plain = _plain_of(patcher)
    return patcher_like(patcher, plain.patcher, plain.rebound)


def bound_to_streamed(patcher: Any) -> str | None:
    """What on a MODEL a copy of its weights would not take along, for people, or None."""
    if not is_dynamic(patcher):
        return None
    if injects(patcher):
        return "a LoRA in bypass mode is bound to weights that the host streams"
    originals = {id(part) for part in patcher.model.modules()}
    if any(_holds(patch, originals) for patch in patcher.object_patches.values()):
        return "a patch of another node is bound to weights that the host streams"
    return None


def _holds(function: Any, objects: set[int]) -> bool:
    """Whether a function, as its variables or arguments, holds one of these objects (ids)."""
    if isinstance(function, MethodType):
        function = function.__func__  # what it is bound to can be replaced
    if isinstance(function, partial):
        return any(
            id(part) in objects for part in (function.func, *function.args, *function.keywords.values())
        )
    return any(id(content) in objects for _, content in closure_of(function))


def resident_vae(vae: Any) -> Any:
    """Return a VAE for the same weights whose weights stay in place."""
    if not is_dynamic(vae.patcher):
        return vae
    twin = copy.copy(vae)
    twin.patcher = resident(vae.patcher)
    twin.first_stage_model = twin.patcher.model
    return twin


class ResidentParts:
    """Copies what a sampler is given, with every dynamic patcher in it replaced by a resident one.

    Dicts, lists and tuples are searched, and the attributes of objects: ControlNets and those chained to them, GLIGEN, model
    patches, their bound methods, patches that hold patches. What holds none is kept, not copied. One object has one copy.
    """

    def __init__(self) -> None:
        self._seen: dict[int, tuple[Any, Any]] = {}  # id -> (an object, what replaces it)
        self._twins: dict[int, Any] = {}  # of the parts of replaced patchers' modules

    def __call__(self, value: Any) -> Any:
        if id(value) in self._twins:
            return self._twins[id(value)]
        if id(value) not in self._seen:
            self._seen[id(value)] = (value, value)  # a chain may come back to where it began
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
        # patchers first: other attributes may be parts of their modules
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


def keep_whole(needed: Iterable[Any], beside: Iterable[Any]) -> list[Any]:
    """Have the host load `needed` whole if it has not, making room for it; returns what is still streamed.

    A second run finds the room taken by what the first one left on the device, and the host then loads in part what it
    could load whole.

    Args:
        needed: patchers of what is differentiated. beside: of what the run calls without a gradient.
    """
    needed = list(needed)
    # several patchers of one module are one model to load
    together = list({id(patcher.model): patcher for patcher in (*beside, *needed)}.values())
    in_part = [patcher for patcher in needed if not is_dynamic(patcher) and is_streamed(patcher)]
    if in_part:
        for patcher in in_part:
            patcher.detach()  # the host adds nothing to what it does not know to be partial
        try:
            load_whole(together)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            load_models_gpu(together)  # as much as there is room for
    return [patcher for patcher in needed if is_streamed(patcher)]


def fits_whole(*patchers: Any) -> bool:
    """Whether the device of these patchers could hold all their weights at once, if it held nothing else."""
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
    """Whether a weight has a dtype to be cast to; quantised tensors and subclasses of other packs stay as they are."""
    plain = type(weight.tensor) in (Tensor, nn.Parameter)
    return plain and weight.dtype is not None and weight.tensor.is_floating_point()


def _copied(patcher: Any) -> tuple[nn.Module, dict[int, Any]]:
    """A copy of a dynamic patcher's module, with its weights in the dtype that each part computes in.

    Returns:
        The copy, and id -> what replaces each part of the original.
    """
    unload(patcher)
    twins: dict[int, Any] = {}
    for weight in weights_of(patcher.model):
        if weight.tensor.is_meta:  # a file lacked it; the host fills it in
            continue
        own = same_storage(weight.tensor.to(patcher.offload_device))
        if _is_cast(weight):
            own = own.to(weight.dtype)
        is_parameter = weight.name in weight.module._parameters
        twins[id(weight.tensor)] = as_weight(own) if is_parameter else own
    with without_streaming_state(patcher.model):
        module: nn.Module = _twin(patcher.model, twins)
    not_loaded_yet(module, patcher.offload_device)
    return module, {id(part): twins[id(part)] for part in patcher.model.modules()}


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


def refuse_streamed(patcher: Any, what: str) -> None:
    """Raise if the host keeps only part of these weights on the device: a backward pass would be wrong.

    Raises:
        ValueError: names the model and what to do.
    """
    if is_streamed(patcher):
        raise ValueError(
            f"JEPA guidance cannot differentiate {what} while its weights are streamed from system memory "
            "(the gradients would be silently wrong). Free memory: a smaller model, or fewer models in the graph."
        )
