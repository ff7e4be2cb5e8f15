"""The CUDA benchmark on the host tests' tiny networks: what it measures runs, and what it says of a machine without one."""

from __future__ import annotations

import importlib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from jepa_core import load_encoder
from research.costs import device
from research.costs.step import NAIVE, UNGUIDED, run_arm
from research.harness import timing
from research.harness.networks import Networks
from research.harness.timing import Stages

PIXELS = 64


@pytest.fixture(scope="module")
def networks() -> Networks:
    tiny: Any = importlib.import_module("tests.host.conftest")
    positive, negative = tiny.tiny_conditioning(10), tiny.tiny_conditioning(11)
    return Networks(tiny.tiny_model(), tiny.tiny_vae(), tiny.tiny_encoder(), positive, negative)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
def test_a_machine_without_cuda_is_told_so(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    assert device.main(["--folder", str(tmp_path), "--out", str(tmp_path / "cuda.json")]) == 1
    assert capsys.readouterr().err.strip() == device.NO_DEVICE
    assert not list(tmp_path.iterdir())


def test_arms_are_timed_and_one_that_fails_says_how(
    networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "peak_memory", lambda run: {"peak_GiB": 0.0})
    found = device.step_figures(networks, PIXELS, (UNGUIDED, NAIVE, "custom", "fast"), 2, 2)
    assert list(found) == [UNGUIDED, NAIVE, "custom", "fast"]
    assert found["custom"]["over_unguided"] > 0
    assert found["custom"]["naive_over_this"] > 0
    assert found[NAIVE]["encoder_calls"] == [79, 79]
    monkeypatch.setattr(device, "arm_row", lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
    assert device.step_figures(networks, PIXELS, ("custom",), 2, 1) == {
        "custom": {"failed": "RuntimeError: out of memory"}
    }


def test_promises_hold_on_a_processor(networks: Networks) -> None:
    found = device.promises(networks, PIXELS, ("custom",), (0.3, 100.0))
    assert found.pop("an unguided run repeats bit for bit")
    row = found["arms"]["custom"]
    stopped, never = row.pop("seconds from cancel to the end")
    assert 0 <= stopped < 10
    assert never is None
    assert row.pop("seconds of a guided step") > 0
    assert row.pop("largest difference of two runs, of the guided change") == 0
    assert all(row.values())
    # the button is up again
    run_arm(networks, UNGUIDED, 1, PIXELS, Stages())


def test_gradients_are_compared_with_the_exact_one(save_model: Any, tmp_path: Path) -> None:
    folder = save_model()
    encoder = load_encoder(folder, image_size=28)
    arms = device.gradient_figures(folder, tmp_path, encoder, 2)["arms"]
    assert arms["cold, full precision (faithful)"]["cosine"] > 0.99
    assert {"cold_seconds", "seconds", "cosine"} <= set(arms["tracked, full precision (custom)"])


def test_scores_are_timed(encoder: Any, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "PROJECTION", 8)
    assert set(device.score_figures(encoder, images[:1], 2)) == {"exact", "top 9", "projected"}


def test_the_first_of_several_runs_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 9.0, 10.0, 12.0, 20.0, 24.0])
    monkeypatch.setattr(timing, "clock", partial(next, times))
    assert timing.seconds_of(lambda: None, 3) == 3.0
