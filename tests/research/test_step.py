"""The guided step is timed stage by stage without a change to it."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from jepa_core import RarityGradient
from research.costs import step as benchmark
from research.costs.step import ARMS, NAIVE, UNGUIDED, measure, naive_chain, run_arm, table, with_ratios
from research.harness.networks import Networks, randomise, tiny_autoencoder
from research.harness.pack_api import Guide, ImageGradient, LatentDecoder, Way, chain, preset_inputs
from research.harness.timing import (
    DECODER_BACKWARD,
    DECODER_FORWARD,
    DENOISER,
    DENOISER_BACKWARD,
    DENOISER_WITH_GRAPH,
    ENCODER,
    REST,
    Stages,
)

PIXELS = 64
DECODING = {DECODER_FORWARD, DECODER_BACKWARD, ENCODER, REST}
THROUGH = DECODING | {DENOISER_WITH_GRAPH, DENOISER_BACKWARD}


@pytest.fixture(scope="module")
def networks() -> Networks:
    """The host tests' tiny networks, of random weights."""
    tiny: Any = importlib.import_module("tests.host.conftest")
    return Networks(
        tiny.tiny_model(),
        tiny.tiny_vae(),
        tiny.tiny_encoder(),
        tiny.tiny_conditioning(10),
        tiny.tiny_conditioning(11),
    )


def test_a_stage_is_charged_without_what_lies_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0, 21.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    operations = iter([0, 10, 10, 30, 30, 30, 31])
    stages = Stages(operations=lambda: next(operations))
    with stages.stage(DECODER_BACKWARD), stages.stage(ENCODER):  # 0 1
        pass  # 3 6
    stages.finish_step()  # 10
    with stages.stage(DENOISER):  # 15
        pass  # 21
    assert stages.steps == [{DECODER_BACKWARD: (1.0 + 3.0, 30), ENCODER: (2.0, 0), REST: (4.0, 0)}]


@pytest.mark.parametrize(
    ("arm", "expected"),
    [
        (UNGUIDED, {DENOISER, REST}),
        (NAIVE, THROUGH | {DENOISER}),
        ("faithful", THROUGH | {DENOISER}),
        ("through denoiser, VAE at encoder resolution", THROUGH),
        ("subtle", DECODING | {DENOISER}),
        ("fast", DECODING | {DENOISER}),
    ],
)
def test_every_arm_runs_and_accounts_for_its_steps(networks: Networks, arm: str, expected: set[str]) -> None:
    with tiny_autoencoder():
        row = measure(networks, arm, 3, PIXELS, count=True)
    assert set(row["stages"]) == expected
    assert len(row["each_step"]) == 3
    assert len(row["encoder_calls"]) == (0 if arm == UNGUIDED else 4)
    for name, stage in row["stages"].items():
        assert stage["seconds"] >= 0
        assert name == REST or stage["tflop"] >= 0
    assert row["seconds"] == pytest.approx(sum(row["each_step"][1:]) / 2, abs=2e-3)


def test_watching_changes_nothing(networks: Networks) -> None:
    stock = (chain.decoded, chain.LatentGradient.of_latent, chain.LatentGradient.__call__)
    plain = run_arm(networks, "subtle", 2, PIXELS, Stages())
    with Stages().watching():
        assert chain.decoded is not stock[0]
        seen = run_arm(networks, "subtle", 2, PIXELS, Stages())
    assert torch.equal(plain, seen)
    assert (chain.decoded, chain.LatentGradient.of_latent, chain.LatentGradient.__call__) == stock


def test_counted_operations_are_those_of_the_passes(
    networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    # enough digits for networks this small
    monkeypatch.setattr(benchmark, "round", lambda value, digits: value, raising=False)
    rows = {arm: measure(networks, arm, 2, PIXELS, count=True) for arm in (UNGUIDED, NAIVE, "faithful")}
    once = rows[UNGUIDED]["stages"][DENOISER]["tflop"]
    assert once > 0
    for arm in (NAIVE, "faithful"):
        assert rows[arm]["stages"][DENOISER]["tflop"] == pytest.approx(once, rel=0.01)
        assert rows[arm]["stages"][DENOISER_WITH_GRAPH]["tflop"] == pytest.approx(once, rel=0.01)
    # backward with respect to the input alone costs as much as forward; checkpointed, forward is in it again
    assert rows[NAIVE]["stages"][DENOISER_BACKWARD]["tflop"] == pytest.approx(once, rel=0.2)
    assert rows["faithful"]["stages"][DENOISER_BACKWARD]["tflop"] == pytest.approx(2 * once, rel=0.2)


def test_the_naive_chain_has_the_gradient_of_the_chain(networks: Networks) -> None:
    rarity = RarityGradient(9, 2, 6, tracked=False, tolerance=0.0)
    encoder = networks.encoder.encoder
    base = networks.model.model
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def denoise(z: torch.Tensor) -> torch.Tensor:
        return 0.5 * z + 0.1 * z.sin()

    sigma = torch.tensor(1.0)
    naive = naive_chain(networks.vae, encoder, Stages())(denoise, x, sigma, base)
    exact = chain.LatentGradient(
        LatentDecoder(networks.vae),
        ImageGradient([Guide(encoder)], rarity, antialias=False),
        way=Way(through_denoiser=True),
    )
    slope = exact(denoise, x, sigma, base)
    cosine = torch.cosine_similarity(naive.gradient.flatten(), slope.gradient.flatten(), dim=0)
    assert cosine > 0.95
    assert naive.score.item() == pytest.approx(slope.score.item(), rel=0.05)


def test_ratios_and_their_bound() -> None:
    arms = {
        UNGUIDED: {"seconds": 2.0, "tflop": 1.0, "stages": {DENOISER: {"seconds": 2.0}}},
        NAIVE: {"seconds": 12.0, "tflop": 6.0, "stages": {ENCODER: {"seconds": 6.0}}},
        "faithful": {"seconds": 8.0, "tflop": 4.0, "stages": {ENCODER: {"seconds": 2.0}}},
    }
    found = with_ratios(arms)
    assert "naive_over_this" not in found[UNGUIDED]
    assert found["faithful"]["over_unguided"] == 4
    assert found["faithful"]["tflop_over_unguided"] == 4
    assert found["faithful"]["naive_over_this"] == 1.5
    assert found["faithful"]["naive_over_this_at_best"] == 2
    assert with_ratios({"faithful": arms["faithful"]}) == {"faithful": arms["faithful"]}
    assert "faithful" in table({"arms": found})


def test_arms_name_inputs_that_there_are() -> None:
    known = set(preset_inputs())
    for preset, changes in ARMS.values():
        assert set(changes) <= known
        assert set(preset_inputs(preset, changes)) == known


def test_random_weights_keep_activations_of_ordinary_size() -> None:
    net = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(8)), torch.nn.LayerNorm(256))
    randomise(net, seed=0)
    x = net[:-1](torch.randn(64, 256, generator=torch.Generator().manual_seed(0)))
    assert 0.5 < x.std() < 2
    assert torch.equal(net[-1].weight, torch.ones(256))
    assert not net[0].bias.any()


def test_a_run_of_one_step_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        benchmark.main(["--steps", "1", "--out", str(tmp_path / "step.json")])
    assert "at least 2" in capsys.readouterr().err
