"""Recognising compiled networks, and running them as they were written."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from torch import nn


def compiles(wrapper: Any) -> bool:
    """Whether a wrapper replaces networks by compiled ones, as the host's TorchCompileModel does."""
    tables = [content for _, content in closure_of(wrapper) if isinstance(content, dict)]
    return any(is_compiled(part) for table in tables for part in table.values())


def runs_compiled(network: nn.Module, options: dict) -> bool:
    """Whether a network, or a part of it, runs compiled in ordinary calls with these model options."""
    wrappers = options.get("transformer_options", {}).get("wrappers", {})
    every = [one for keys in wrappers.values() for group in keys.values() for one in group]
    return any(map(compiles, every)) or any(map(is_compiled, network.modules()))


def closure_of(function: Any) -> list[tuple[Any, Any]]:
    """The closure variables of a function, as (cell, value); empty cells are left out."""
    found = []
    for cell in getattr(function, "__closure__", None) or ():
        with suppress(ValueError):
            found.append((cell, cell.cell_contents))
    return found


def is_compiled(value: Any) -> bool:
    """Whether a module is the result of torch.compile."""
    return isinstance(value, nn.Module) and "_orig_mod" in value._modules


def as_written(module: nn.Module) -> nn.Module:
    """The original of a compiled module; any other module itself."""
    return module.get_submodule("_orig_mod") if is_compiled(module) else module


@contextmanager
def uncompiled(*modules: nn.Module) -> Iterator[None]:
    """Within the block, compiled parts of these modules are replaced by the originals.

    Compiling a backward pass takes minutes, and checkpointing breaks compiled graphs.
    """
    replaced = []
    try:
        for parent in [part for module in modules for part in module.modules()]:
            for name, child in parent._modules.items():
                if child is not None and is_compiled(child):
                    replaced.append((parent, name, child))
        for parent, name, child in replaced:
            parent._modules[name] = as_written(child)
        yield
    finally:
        for parent, name, child in replaced:
            parent._modules[name] = child
