"""The order of the ways, the choice among them, and what is remembered of failures."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from jepa_guidance.host.comfy import memory
from jepa_guidance.host.gradient.ways import CONSTANT, THROUGH, ways_down
from jepa_guidance.host.guidance.memory_plan import SPILLED, PlannedMemory
from jepa_guidance.host.guidance.trace import Trace
from jepa_guidance.host.memory.plan import MemoryPlan

from research.harness.pack_api import OwnGradient

GIB = 1 << 30
WAYS = ways_down(THROUGH, small_decoder=True, batch=4)


def plan(needs, free, network=None):
    return MemoryPlan(WAYS, needs, lambda: free, network or torch.nn.Identity(), "key")


def test_ways_go_by_loss_of_effect_first_and_by_time_second():
    effects = [(not way.through_denoiser, way.small_decoder) for way in WAYS]
    assert effects == sorted(effects)
    assert WAYS[0] == THROUGH
    assert not WAYS[-1].through_denoiser
    assert len(set(WAYS)) == len(WAYS)
    full = [way for way in WAYS if way.same_effect(THROUGH)]
    # before anything is lost, one image at a time
    assert full[2].one_by_one
    assert [way.checkpointing for way in full] == [False, False, False, True, True, True, True]


def test_a_batch_of_one_has_nothing_to_divide_and_a_constant_denoiser_no_estimate():
    assert not any(way.one_by_one for way in ways_down(THROUGH, small_decoder=True, batch=1))
    own = ways_down(CONSTANT, small_decoder=False, batch=4)
    assert not any(way.estimate_first or way.one_by_one or way.through_denoiser for way in own)


def test_what_was_asked_for_is_kept_on_the_way_down():
    asked = replace(THROUGH, checkpointing=True)
    assert all(way.checkpointing for way in ways_down(asked, small_decoder=True, batch=2))


@pytest.mark.parametrize(("free", "place"), [(100, 0), (10.5, 0), (9.4, 1), (4, 6), (0.1, len(WAYS) - 1)])
def test_the_first_way_that_fits_is_taken(free, place):
    # each takes 1 GiB less than the one before, from 9 GiB on
    sizes = {way: max(9 - number, 0.3) * GIB for number, way in enumerate(WAYS)}
    assert plan(lambda way: int(sizes[way]), int(free * GIB)).best() == WAYS[place]


def test_after_a_failure_the_next_way_takes_a_third_less_and_later_runs_begin_there():
    sizes = {way: int(max(9 - number, 0.3) * GIB) for number, way in enumerate(WAYS)}
    network = torch.nn.Identity()
    first = plan(sizes.get, 100 * GIB, network)
    assert first.best() == WAYS[0]
    then = first.after_failure(WAYS[0])
    assert then == WAYS[3]
    assert sizes[then] <= 0.7 * sizes[WAYS[0]] < sizes[WAYS[2]]
    assert plan(sizes.get, 100 * GIB, network).best() == then
    # more free memory than at the failure: something else held it then
    assert plan(sizes.get, 120 * GIB, network).best() == WAYS[0]
    # another network never failed
    assert plan(sizes.get, 100 * GIB).best() == WAYS[0]


def test_if_no_way_promises_less_the_effect_is_kept_and_the_end_is_reached():
    found = plan(lambda way: GIB, 100 * GIB)
    way, tried = found.best(), []
    while way is not None:
        tried.append(way)
        way = found.after_failure(way)
    assert tried[1].same_effect(THROUGH)
    assert tried[-1] == WAYS[-1]
    assert len(tried) < len(WAYS)


def test_a_driver_that_moves_memory_into_the_systems_is_noticed_once(monkeypatch):
    class Guider:
        inner_model = None

    trace = Trace()
    own = OwnGradient(lambda *_: None)
    planned = PlannedMemory(Guider(), own, trace, torch.zeros(1, 4, 8, 8), lambda: None, None)
    planned.after_step()
    assert trace.notices == []
    # a processor has no such memory
    device = torch.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: type("Card", (), {"total_memory": 8}))
    for held, expected in ((8, False), (9, True)):
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _, held=held: held)
        assert memory.has_spilled(device) is expected
    planned._x = type("OnCard", (), {"device": device})
    planned.after_step()
    planned.after_step()
    assert trace.notices == [SPILLED]


def test_passes_without_directions_cannot_be_divided():
    assert not any(
        way.one_direction for way in ways_down(THROUGH, small_decoder=True, batch=1, directions=False)
    )
