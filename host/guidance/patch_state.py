"""State that patches of other nodes keep between model calls, restored after calls that are not the sampler's own.

Momentum, caches and counters of other packs expect one call for each step. Guidance makes one additional call in each
guided step, and two more when it checks a gradient.
"""

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..comfy.required import ModelPatcher
from ..gradient.compiled import closure_of

_OWN_PACKAGE = __name__.rpartition(".host.")[0] + "."
# Objects whose contents are not a patch's state: models and their patchers, code, numbers.
_NOT_STATE = (ModelPatcher, ModuleType, type, Tensor, str, bytes, int, float)
# How deep to look below the containers of the model options: a function, an object in its variables, an object in that
# one. Anything deeper is not a patch's state but, for example, the server's.
_DEPTH = 3


class _Undo(NamedTuple):
    """How to restore one object, and what it holds now; nothing for lists and the like."""

    put_back: Callable[[], Any]
    held: Callable[[], Iterable[Any]] = tuple


class PatchState:
    """A snapshot of the state of patches.

    It covers the host's nested model options, the closure variables of functions in them, attributes and containers of
    objects in them, and plain attributes of the network. Tensors are kept by reference: in-place changes of a tensor
    are not undone.

    Args:
        options: the host's model options of a call. network: the denoiser's network.
    """

    def __init__(self, options: dict, network: nn.Module) -> None:
        self._undo: list[_Undo] = []
        self._seen: set[int] = set()
        self._attributes(network)
        self._remember(options, _DEPTH)

    def put_back(self) -> None:
        """Restore the state of the snapshot. Can be called any number of times."""
        for step in self._undo:
            step.put_back()

    def forget_images(self) -> None:
        """Restore only objects, dicts and closure variables that now hold tensors: caches of the batch, momentum.

        For a model call with other images than the one before. Lists, such as logs, stay.
        """
        for step in [
            step for step in self._undo if any(isinstance(held, Tensor) and held.ndim for held in step.held())
        ]:
            step.put_back()

    def _remember(self, value: Any, depth: int) -> None:
        if not depth or id(value) in self._seen or value is None or isinstance(value, _NOT_STATE):
            return
        self._seen.add(id(value))
        if depth == _DEPTH and isinstance(value, (dict, list, tuple)):
            depth += 1
        for part in self._parts(value):
            self._remember(part, depth - 1)

    def _parts(self, value: Any) -> list[Any]:
        """Record how to restore one object; returns the objects in it."""
        if isinstance(value, (dict, list, set, deque)):
            values = value.values if isinstance(value, dict) else tuple
            self._undo.append(_Undo(_container(value), values))
            return list(value.values()) if isinstance(value, dict) else list(value)
        if isinstance(value, tuple):
            return list(value)
        if isinstance(value, MethodType):
            return [value.__self__, value.__func__]
        if isinstance(value, partial):
            return [value.func, *value.args, *value.keywords.values()]
        if isinstance(value, FunctionType):
            return self._variables(value)
        if isinstance(value, torch.Generator):
            self._undo.append(_Undo(partial(value.set_state, value.get_state())))
            return []
        return self._attributes(value)

    def _variables(self, function: FunctionType) -> list[Any]:
        if str(function.__module__).startswith(_OWN_PACKAGE):
            return []  # guidance keeps its own state
        variables = closure_of(function)
        self._undo += [
            _Undo(partial(setattr, cell, "cell_contents", content), partial(_contents, cell))
            for cell, content in variables
        ]
        return [content for _, content in variables]

    def _attributes(self, owner: Any) -> list[Any]:
        """Record the attributes of an object; of a module, only those that are not torch's."""
        held = getattr(owner, "__dict__", None)
        if not isinstance(held, dict):
            return []
        before = _own(owner, held)

        def put_back() -> None:
            for name in _own(owner, held).keys() - before.keys():
                del held[name]
            held.update(before)

        self._undo.append(_Undo(put_back, lambda: list(_own(owner, held).values())))
        return list(before.values())


def _own(owner: Any, attributes: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(owner, nn.Module):
        return dict(attributes)
    torchs = (nn.Module, MethodType, FunctionType)
    return {
        name: part
        for name, part in attributes.items()
        if not name.startswith("_") and not isinstance(part, torchs)
    }


def _contents(cell: Any) -> list[Any]:
    return [cell.cell_contents]


def _container(value: Any) -> Callable[[], None]:
    before = value.copy()

    def put_back() -> None:
        value.clear()
        if isinstance(value, (dict, set)):
            value.update(before)
        else:
            value.extend(before)

    return put_back
