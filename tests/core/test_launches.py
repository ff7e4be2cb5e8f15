"""How often an encoder's gradient asks a device for something, counted as it would run on CUDA."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from jepa_core import Encoder, RarityGradient, full_precision, load_encoder
from jepa_core.encoder import ORDERED_ATTENTION
from tests.core.recorded_graphs import Graph, install


class Launches(TorchDispatchMode):
    """Counts what a device would be asked for: operations that compute or copy, and replayed graphs as one each."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += not Graph.replaying and on_device(args) and computes(func)
        return func(*args, **kwargs or {})


def on_device(args: Any) -> bool:
    """Whether an operation would be the device's: small matrices in float64 are the processor's."""
    return any(isinstance(leaf, Tensor) and leaf.dtype != torch.float64 for leaf in tree_leaves(args))


def computes(func: Any) -> bool:
    """Whether an operation is more than a view of its input or room for a result."""
    views = any(value.alias_info and not value.alias_info.is_write for value in func._schema.returns)
    name = func._schema.name.partition("::")[2]
    return not (views or name in ("to", "_unsafe_view") or "empty" in name)


def launches(gradient: RarityGradient, encoder: Encoder, x: Tensor) -> int:
    before = Graph.replayed
    with Launches() as counted:
        gradient(encoder, x)
    return counted.operations + Graph.replayed - before


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch, save_model: Callable[..., Path]) -> Encoder:
    """An encoder of twelve layers, as a ViT-S has, that takes the ways that it would take on a card."""

    @contextmanager
    def by_autocast(device: torch.device) -> Iterator[None]:
        with full_precision(device), torch.autocast("cpu", torch.bfloat16):
            yield

    @contextmanager
    def ordered(encoder: Encoder) -> Iterator[None]:
        before = encoder.model.config._attn_implementation
        encoder.model.set_attn_implementation(ORDERED_ATTENTION)
        yield
        encoder.model.set_attn_implementation(before)

    install(monkeypatch)
    monkeypatch.setattr("jepa_core.jacobian.captures", lambda x: True)
    monkeypatch.setattr("jepa_core.jacobian._FORWARD_MODE", set())
    monkeypatch.setattr("jepa_core.jacobian._DIRECTIONS", {})
    monkeypatch.setattr("jepa_core.jacobian._LAYER_MEMORY", {})
    monkeypatch.setattr("jepa_core.jacobian.has_fast_bfloat16", lambda device: True)
    monkeypatch.setattr("jepa_core.encoder.half_precision", by_autocast)
    monkeypatch.setattr(Encoder, "fused_attention", ordered)
    return load_encoder(save_model(num_hidden_layers=12), image_size=28)


# Operations of a tracked gradient without further rounds, on twelve layers. Before passes were replayed,
# batched by torch.func and used torch's LayerNorm it was about 2650 and 2900.
@pytest.mark.parametrize(("half", "plain"), [(False, 1380), (True, 1650)])
def test_how_often_a_device_is_asked(encoder, images, half, plain):
    x = images[:1].float()
    for replay, limit in ((False, plain), (True, 45)):
        gradient = RarityGradient(half=half, tolerance=99, replay=replay)
        for _ in range(3):  # the first one is cold, the second one captures
            gradient(encoder, x)
        count = launches(gradient, encoder, x)
        assert limit / 2 < count <= limit
