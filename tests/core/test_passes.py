"""Replayed passes against plain ones, on a stand-in for CUDA graphs."""

from __future__ import annotations

import copy
import gc
import logging
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from jepa_core import RarityGradient, load_encoder
from jepa_core.passes import Pass, Replay
from tests.core.recorded_graphs import Graph, install

GENERATOR = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(4, 3, generator=GENERATOR, dtype=torch.float64)
POINTS = torch.randn(6, 2, 3, generator=GENERATOR, dtype=torch.float64)
LEFT = torch.randn(6, 2, 4, generator=GENERATOR, dtype=torch.float64)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> type[Graph]:
    return install(monkeypatch)


def embed(x: Tensor) -> Tensor:
    return (x @ WEIGHT.T).sin().cumsum(0)


def check(one: Pass, x: Tensor, cotangent: Tensor = LEFT[0]) -> None:
    """A pass at x gives the bits of a plain one."""
    plain = Pass(embed, x)
    assert torch.equal(one.value, plain.value)
    assert torch.equal(one.pull_each(LEFT), plain.pull_each(LEFT))
    assert torch.equal(one.pull_each(LEFT[:2]), plain.pull_each(LEFT[:2]))
    assert torch.equal(one.pull(cotangent), plain.pull(cotangent))


def test_a_pass_is_what_autograd_gives():
    x = POINTS[0]
    jacobian = torch.autograd.functional.jacobian(embed, x)
    one = Pass(embed, x)
    assert torch.equal(one.value, embed(x))
    expected = torch.einsum("rbd,bdcn->rcn", LEFT, jacobian)
    torch.testing.assert_close(one.pull_each(LEFT), expected)
    torch.testing.assert_close(one.pull(LEFT[0]), expected[0])


def test_passes_are_captured_the_second_time_and_replayed_from_then_on(graphs):
    replay = Replay()
    for turn, x in enumerate(POINTS):
        check(replay("f", embed, x, [WEIGHT]), x, LEFT[turn])
        # forward, two shapes of several cotangents, one cotangent
        assert (graphs.captured, graphs.replayed) == (4 * bool(turn), 4 * turn)


def test_an_earlier_pass_is_run_again_where_a_later_one_has_overwritten_it(graphs):
    replay = Replay()
    replay("f", embed, POINTS[0], [WEIGHT])
    first, second = (replay("f", embed, x, [WEIGHT]) for x in POINTS[1:3])
    for one, x in ((second, POINTS[2]), (first, POINTS[1]), (second, POINTS[2])):
        assert torch.equal(one.pull(LEFT[0]), Pass(embed, x).pull(LEFT[0]))


def test_other_names_shapes_and_dtypes_are_other_passes(graphs):
    replay = Replay()
    for x in (POINTS[0], POINTS[0, :1], POINTS[0].float()):
        replay("f", lambda x: x.sin(), x, [WEIGHT])
    replay("g", embed, POINTS[0], [WEIGHT])
    assert not graphs.captured


def test_weights_that_moved_are_captured_anew(graphs):
    weight = WEIGHT.clone()

    def embed_by(x: Tensor) -> Tensor:
        return (x @ weight.T).sin()

    replay = Replay()
    for _ in range(2):
        found = replay("f", embed_by, POINTS[0], [weight])
    assert graphs.captured == 1
    old, weight = weight, 2 * WEIGHT
    for captured in (1, 2):
        found = replay("f", embed_by, POINTS[0], [weight])
        assert torch.equal(found.value, embed_by(POINTS[0]))
        assert graphs.captured == captured
    assert old is not weight


@pytest.mark.parametrize("at", ["forward", "backward"])
def test_what_cannot_be_captured_is_run_by_torch_for_good_and_said_once(graphs, monkeypatch, caplog, at):
    replay = Replay()
    capture = torch.cuda.graph

    def fails(*args: Any, **kwargs: Any) -> Any:
        if at == "forward" or graphs.captured:
            raise RuntimeError("operation not permitted when stream is capturing")
        return capture(*args, **kwargs)

    monkeypatch.setattr(torch.cuda, "graph", fails)
    with caplog.at_level(logging.WARNING):
        for x in POINTS:
            check(replay("f", embed, x, [WEIGHT]), x)
    assert [record.message for record in caplog.records] == [
        "JEPA guidance: the encoder's passes cannot be captured: operation not permitted when stream is capturing"
    ]
    assert graphs.captured == (at == "backward")


def test_running_out_of_memory_goes_up_and_frees_what_was_captured(graphs, monkeypatch):
    replay = Replay()
    for x in POINTS[:2]:
        one = replay("f", embed, x, [WEIGHT])
    held = weakref.ref(one._captured)
    del one

    def full(*args: Any, **kwargs: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("no")

    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "graph", full)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            replay("f", embed, POINTS[2], [WEIGHT]).pull(LEFT[0])
    gc.collect()
    assert held() is None
    for x in POINTS:
        check(replay("f", embed, x, [WEIGHT]), x)
    assert graphs.captured == 1 + 4


@pytest.fixture
def as_on_a_card(graphs: type[Graph], monkeypatch: pytest.MonkeyPatch) -> type[Graph]:
    """Encoders replay here what they would replay on a card."""
    monkeypatch.setattr("jepa_core.jacobian.captures", lambda x: True)
    return graphs


@pytest.mark.parametrize("half", [False, True])
def test_a_replayed_gradient_is_the_plain_one(as_on_a_card, encoder, images, half):
    plain, replayed = RarityGradient(4, half=half), RarityGradient(4, half=half, replay=True)
    for step in range(4):
        x = images[:2] + 0.02 * step
        expected, found = plain(encoder, x), replayed(encoder, x)
        for name in ("score", "grad", "u", "v", "residual"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), name
        assert found.encoder_calls == expected.encoder_calls
    assert as_on_a_card.captured >= 3
    before = as_on_a_card.captured, as_on_a_card.replayed
    # a fresh run of a copy of the same encoder goes on with what was captured
    replayed.fresh()(copy.copy(encoder), x)
    assert as_on_a_card.captured == before[0]
    assert as_on_a_card.replayed > before[1]


def test_only_cuda_is_captured(graphs, encoder, images):
    replayed = RarityGradient(4, replay=True)
    for _ in range(3):
        replayed(encoder, images[:1])
    assert not graphs.captured


def test_what_was_captured_goes_with_its_encoder_or_when_asked(as_on_a_card, save_model, images):
    replayed = RarityGradient(4, replay=True)
    for free in (replayed.release, None):
        encoder = load_encoder(save_model(), dtype=torch.float64, image_size=28)
        for _ in range(3):
            replayed(encoder, images[:1])
        held = [weakref.ref(one) for one in replayed._replays[encoder.model]._captured.values()]
        assert held
        if free:
            free()
        else:
            del encoder
        gc.collect()
        assert not any(one() for one in held)
