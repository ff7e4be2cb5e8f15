"""Recorded trajectories are those of the stock sampler, and of the sampler's default guidance."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from jepa_core import RarityGradient
from research.costs.trajectories import guided_mask, trajectories, trajectory
from research.effects import evaluate

STEPS = 5


class Brightness(RarityGradient):
    """A gradient that is cheap and moves the image."""

    def __init__(self) -> None:
        super().__init__(k=1)
        self.calls = 0

    def reset(self, ids: object = None) -> None:
        self.calls = 0

    def __call__(self, encoder: Any, x: Tensor, ids: object = None) -> Any:
        self.calls += 1
        return SimpleNamespace(score=x.double().mean((1, 2, 3)), grad=torch.ones_like(x) / x[0].numel())


@pytest.fixture(scope="module")
def sampler(encoder_dir: Path) -> evaluate.Sampler:
    return evaluate.Sampler(encoder_dir, power_iterations=1)


def stock(sampler: evaluate.Sampler, rarity: Any, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The final image (H, W, 3) of the sampler itself, guided by `rarity` if there is one."""
    monkeypatch.setattr(evaluate, "STEPS", STEPS)
    monkeypatch.setattr(sampler.core, "RarityGradient", lambda **_: rarity)
    picture, _ = sampler(0, "unguided" if rarity is None else "guided")
    return evaluate.pil_to_tensor(picture).movedim(0, -1)


@pytest.mark.parametrize("rarity", [None, Brightness()])
def test_recording_does_not_change_the_run(
    sampler: evaluate.Sampler, rarity: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, final = trajectory(sampler, 0, STEPS, rarity)
    assert images.shape == (4, 64, 64, 3)
    assert images.dtype == torch.float32
    assert 0 <= images.min() < images.max() <= 1
    if rarity is not None:
        assert rarity.calls == sum(guided_mask(sampler, STEPS)) == 3
    # to bytes as the sampler's picture is
    found = final.mul(255).byte()
    assert torch.equal(found, stock(sampler, rarity, monkeypatch))
    # the last step of Euler's method ends on its own clean estimate
    torch.testing.assert_close(images[-1], final, rtol=0, atol=1e-5)


def test_guidance_shows_after_its_first_step(sampler: evaluate.Sampler) -> None:
    free, guided = (trajectory(sampler, 0, STEPS, rarity)[0] for rarity in (None, Brightness()))
    torch.testing.assert_close(free[0], guided[0], rtol=0, atol=0)
    assert all((free[index] - guided[index]).abs().max() > 1e-3 for index in (1, 2, 3))


def test_what_the_folder_holds_is_not_made_again(sampler: evaluate.Sampler, tmp_path: Path) -> None:
    made = trajectories(tmp_path, sampler, seeds=[1], steps=[2])
    assert list(made) == ["unguided-s2-1"]
    again = trajectories(tmp_path, None, seeds=[1, 2], steps=[2])
    assert list(again) == ["unguided-s2-1"]
    assert torch.equal(again["unguided-s2-1"], made["unguided-s2-1"])
