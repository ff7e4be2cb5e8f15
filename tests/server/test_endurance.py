"""A server that guides for hours uses no more memory than a new one."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import torch

from tests.server.test_graph import graph, guided, node, patch, stock
from tools.server import Server

FIGURES = Path(__file__).with_name("endurance.json")
SCORED = "guided and scored"
KINDS = ("guided", "guided through the denoiser", "guided by the patch", SCORED)
# Each score is kept for whoever asks again, within a bound: tests/host/scoring/test_answers.py.
SCORE_BYTES = 8
WARM_UP = 200  # guided steps
# One latent or image of the demo generator left behind by each step would be 48.
ALLOWED_KIB = 16.0


class Sample(NamedTuple):
    """The server after a run: guided steps so far, resident memory in KiB, and live tensors but for kept scores."""

    kind: str
    steps: int
    resident: int
    tensors: int
    bytes: int


def prompt_of(kind: str, encoder: str, seed: int, steps: int) -> dict:
    """One image, guided at every step, with the smallest encoder input: four patches."""
    everywhere = {"start_percent": 0.0, "end_percent": 1.0}
    if kind == "unguided":
        sampler = stock()
    elif kind == "guided by the patch":
        sampler = {**patch(**everywhere), **stock(["patch", 0])}
    elif kind == "guided through the denoiser":
        sampler = guided(**everywhere, gradient_path="through denoiser")
    else:
        sampler = guided(**everywhere)
    prompt = graph(encoder, sampler)
    # another seed each time, since the server caches results
    prompt["sample"]["inputs"] |= {"seed": seed, "steps": steps}
    prompt["encoder"]["inputs"]["image_size"] = 28
    prompt["count"] = node("LiveTensors", after=["decode", 0])
    if kind == SCORED:
        scoring = {"mode": "projected", "top_k": 32, "fit": "squash", "antialias": True}
        prompt["score"] = node("JEPAScoreImage", images=["decode", 0], encoder=["encoder", 0], **scoring)
    return prompt


def sample_memory(
    server: Server, encoder: str, kinds: Iterable[str], steps_each: int, first_seed: int
) -> list[Sample]:
    """Run one prompt for each of `kinds`, and sample the server's process after it."""
    process = psutil.Process(server.process.pid)
    samples = []
    for number, kind in enumerate(kinds):
        prompt = prompt_of(kind, encoder, first_seed + number, steps_each)
        counted = server.wait(server.queue(prompt), timeout=300)["outputs"]["count"]
        resident = process.memory_info().rss // 1024
        kept = sum(sample.kind == SCORED for sample in samples) + (kind == SCORED)
        (tensors,), (size,) = counted["tensors"], counted["bytes"]
        samples.append(
            Sample(kind, (number + 1) * steps_each, resident, tensors - kept, size - SCORE_BYTES * kept)
        )
    return samples


def growth(samples: list[Sample]) -> float:
    """Growth of resident memory in KiB per step: the median slope between samples of the first and the second half.

    (The Theil-Sen estimator, which is robust to single jumps of the allocator.)
    """
    half = len(samples) // 2
    slopes = [(b.resident - a.resident) / (b.steps - a.steps) for a in samples[:half] for b in samples[half:]]
    return statistics.median(slopes)


def live_by_kind(samples: list[Sample]) -> dict[str, set[tuple[int, int]]]:
    """The numbers and sizes of tensors alive after the runs of each kind; a single pair if nothing leaks."""
    return {
        kind: {(s.tensors, s.bytes) for s in samples if s.kind == kind} for kind in {s.kind for s in samples}
    }


def test_no_tensor_outlives_a_guided_run(fresh_server: Server, encoder_name: str) -> None:
    samples = sample_memory(fresh_server, encoder_name, KINDS * 3, steps_each=2, first_seed=1)
    for kind, live in live_by_kind(samples[len(KINDS) :]).items():
        assert len(live) == 1, f"{kind}: {live}"


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_a_thousand_guided_steps_do_not_grow_the_server(fresh_server: Server, encoder_name: str) -> None:
    start = time.monotonic()
    samples = sample_memory(fresh_server, encoder_name, KINDS * 25, steps_each=10, first_seed=10_000)
    seconds = time.monotonic() - start
    late = [sample for sample in samples if sample.steps > WARM_UP]
    unguided = sample_memory(fresh_server, encoder_name, ["unguided"] * 100, steps_each=10, first_seed=20_000)
    late_unguided = [sample for sample in unguided if sample.steps > WARM_UP]
    figures: dict[str, Any] = {
        "command": "python dev.py test --long tests/server/test_endurance.py",
        "machine": f"{platform.system()} {platform.machine()}, torch {torch.__version__}",
        "guided steps": samples[-1].steps,
        "seconds": round(seconds),
        "kinds of run, by turns": KINDS,
        "resident MiB after each run": [round(sample.resident / 1024, 1) for sample in samples],
        "KiB a guided step after the warm-up": round(growth(late), 2),
        "KiB a step of an unguided run after it": round(growth(late_unguided), 2),
        "live tensors": {kind: sorted(live) for kind, live in sorted(live_by_kind(late).items())},
    }
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
    for kind, live in live_by_kind(late).items():
        assert len(live) == 1, f"{kind}: {live}"
    assert growth(late) < ALLOWED_KIB
