"""A stand-in for torch's CUDA graphs, which a processor does not have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Stream:
    def wait_stream(self, other: Stream) -> None:
        pass


class Graph(TorchDispatchMode):
    """Operations in the order in which they ran, to be run again on the same tensors."""

    captured = 0
    replayed = 0
    replaying = False

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        self.steps.append((func, args, kwargs, found))
        return found

    def replay(self) -> None:
        Graph.replayed += 1
        Graph.replaying = True
        with torch.no_grad():
            for func, args, kwargs, found in self.steps:
                again = func(*args, **kwargs)
                for old, new in zip(tree_leaves(found), tree_leaves(again), strict=True):
                    # neither a view nor in place
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                        with torch.autograd._unsafe_preserve_version_counter(old):  # as on a card
                            old.copy_(new)
        Graph.replaying = False


def install(monkeypatch: pytest.MonkeyPatch) -> type[Graph]:
    """torch.cuda with graphs that record on the processor; counts start at zero."""

    @contextmanager
    def capture(graph: Graph, pool: Any, stream: Any, capture_error_mode: str) -> Iterator[None]:
        Graph.captured += 1
        with graph:
            yield

    Graph.captured = Graph.replayed = 0
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", tuple)
    return Graph
