"""What patches of other nodes remember from one model call to the next, put back after a call that is not the sampler's.

Momentum, caches and counters of other packs are made for one call a step. Guidance calls the model once more at each
guided step, and twice more where it checks a gradient.
"""

from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

from torch import Tensor, nn

from .internals import ModelPatcher

_OWN_PACKAGE = __name__.rpartition(".host.")[0]


class PatchState:
    """What patches remember now.

    It lies where they keep it: in the host's nested model options, in the variables of functions in them and the attributes
    of objects in them, and in plain attributes of the network. Tensors are remembered by name, and not what fills them.

    Args:
        options: the host's model options of a call. network: the denoiser's.
    """

    def __init__(self, options: dict, network: nn.Module) -> None:
        self._undo: list[Callable[[], Any]] = [_plain_attributes(network)]
        _remember(options, self._undo, set())

    def put_back(self) -> None:
        """Make it what it was when this was made; any number of times."""
        for step in self._undo:
            step()


def _remember(value: Any, undo: list[Callable[[], Any]], seen: set[int]) -> None:
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, (dict, list)):
        undo.append(_content(value))
    if isinstance(value, (dict, list, tuple)):
        for part in value.values() if isinstance(value, dict) else value:
            _remember(part, undo, seen)
    elif isinstance(value, MethodType):
        _remember(value.__self__, undo, seen)
    elif isinstance(value, FunctionType):
        if value.__module__.startswith(_OWN_PACKAGE):
            return  # what guidance itself remembers is its own
        for cell in value.__closure__ or ():
            content = _cell_content(cell)
            undo.append(_cell(cell, content))
            if isinstance(content, (dict, list)):
                _remember(content, undo, seen)
            else:
                _remember_object(content, undo)
    else:
        _remember_object(value, undo)


def _remember_object(value: Any, undo: list[Callable[[], Any]]) -> None:
    """The attributes of an object, but not those of objects behind it."""
    if hasattr(value, "__dict__") and not isinstance(
        value, (Tensor, nn.Module, ModelPatcher, type, FunctionType, MethodType)
    ):
        undo.append(_attributes(value))


def _attributes(owner: Any) -> Callable[[], Any]:
    held = vars(owner)
    before = dict(held)
    inside = [_content(part) for part in before.values() if isinstance(part, (dict, list))]

    def put_back() -> None:
        for name in [name for name in held if name not in before]:
            del held[name]
        held.update(before)
        for step in inside:
            step()

    return put_back


def _plain_attributes(network: nn.Module) -> Callable[[], Any]:
    """The attributes of a module that are torch's neither in name nor in kind."""
    held = vars(network)

    def plain() -> dict[str, Any]:
        return {
            name: part
            for name, part in held.items()
            if not name.startswith("_") and not isinstance(part, (nn.Module, MethodType, FunctionType))
        }

    before = plain()

    def put_back() -> None:
        for name in plain().keys() - before.keys():
            del held[name]
        held.update(before)

    return put_back


def _content(container: Any) -> Callable[[], Any]:
    before = container.copy()

    def put_back() -> None:
        container.clear()
        if isinstance(container, dict):
            container.update(before)
        else:
            container.extend(before)

    return put_back


_EMPTY = object()


def _cell_content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable that has no value yet
        return _EMPTY


def _cell(cell: Any, before: Any) -> Callable[[], Any]:
    def put_back() -> None:
        if before is not _EMPTY:
            cell.cell_contents = before

    return put_back
