"""D-JEPA's networks, masks and losses, against plain code written from the paper's equations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from jepa_core.djepa import (
    DJEPA,
    DiffusionDenoiser,
    DJEPAConfig,
    DJEPASizeError,
    FlowDenoiser,
    denoiser_of,
    jepa_loss,
    masked_counts,
    published_config,
    random_masked_count,
    to_latents,
    to_tokens,
    training_draws,
    training_losses,
)
from jepa_core.djepa.model import DenoisingHead
from tests.core.conftest import SMALL_DJEPA, random_djepa

# Of all parameters; of each transformer's blocks; of the head: stated in the paper's public code.
PUBLISHED = {
    "B": (212_017_440, 85_056_000, 35_749_920),
    "L": (687_421_984, 302_312_448, 72_230_432),
    "H": (1_426_730_784, 629_683_200, 151_206_944),
}


def parameters(module: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_sizes_have_the_published_parameter_counts(size):
    total, blocks, head = PUBLISHED[size]
    with torch.device("meta"):
        model = DJEPA(published_config(size))
    assert parameters(model.context_encoder.blocks) == blocks
    assert parameters(model.predictor.blocks) == blocks
    assert parameters(model.head) == head
    assert parameters(model) == pytest.approx(total, rel=0.02)


@pytest.mark.parametrize("steps", [64, 32, 8])
def test_masked_counts_follow_the_formula_and_reveal_something_at_each_step(steps):
    before, expected = 256, []
    for s in range(steps):
        formula = math.floor(256 * math.cos(math.pi / 2 * (s + 1) / steps))
        before = 0 if s == steps - 1 else max(1, min(formula, before - 1))
        expected.append(before)
    found = masked_counts(256, steps)
    assert found == expected
    assert all(after < ahead for ahead, after in zip([256, *found], found, strict=False))
    raw = [math.floor(256 * math.cos(math.pi / 2 * (s + 1) / steps)) for s in range(steps)]
    empty = sum(a == b for a, b in zip([256, *raw], raw, strict=False))
    assert (empty == 3) == (steps == 64)  # what the clamp is for


@pytest.mark.parametrize("tokens", [1, 2, 7, 64, 256])
def test_as_many_steps_as_tokens_reveal_one_at_a_time(tokens):
    assert masked_counts(tokens, tokens) == list(reversed(range(tokens)))


@pytest.mark.parametrize("steps", [0, -1, 65])
def test_more_steps_than_tokens_are_refused(steps):
    with pytest.raises(ValueError, match=f"from 1 to 64.*got {steps}"):
        masked_counts(64, steps)


def test_the_mask_ratio_is_a_truncated_normal():
    generator = torch.Generator().manual_seed(0)
    ratios = np.array([random_masked_count(10_000, generator) for _ in range(4000)]) / 10_000
    assert ratios.min() >= 0.7
    assert ratios.max() <= 1
    # the density of normal(1, 0.25) on [0.7, 1], integrated by hand
    grid = np.linspace(0.7, 1, 10_001)
    density = np.exp(-0.5 * ((grid - 1) / 0.25) ** 2)
    cumulative = np.cumsum(density) / density.sum()
    for quantile in (0.1, 0.5, 0.9):
        expected = grid[np.searchsorted(cumulative, quantile)]
        assert np.quantile(ratios, quantile) == pytest.approx(expected, abs=0.01)


def test_tokens_and_latents_are_the_same_numbers():
    latents = torch.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4)
    tokens = to_tokens(latents, 2)
    assert tokens.shape == (2, 4, 12)
    # the second token is the upper right patch: channels, then rows, then columns
    assert torch.equal(tokens[0, 1], latents[0, :, :2, 2:].flatten())
    assert torch.equal(to_latents(tokens, 2), latents)


def test_the_last_block_makes_only_the_rows_that_are_wanted():
    model = random_djepa(dtype=torch.float64)
    tokens, places, wanted, labels = inputs(model.config)
    context = model.context_encoder(tokens.gather(1, places[..., None].expand(-1, -1, 5)), places, labels)
    found = model.predictor(context, places, wanted)
    x = model.predictor.embed(context)
    image = model.predictor.mask_token.expand(len(x), model.config.tokens, -1).clone()
    for row in range(len(x)):
        for position, place in enumerate(places[row].tolist()):
            image[row, place] = x[row, model.config.buffer + position]
    x = torch.cat([x[:, : model.config.buffer], image + model.predictor.position], 1)
    for block in model.predictor.blocks:
        x = block(x)
    x = model.predictor.norm(x)[:, model.config.buffer :]
    expected = torch.stack([x[row, wanted[row]] for row in range(len(x))])
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


def inputs(config: DJEPAConfig, batch: int = 3, known: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """tokens, known places, the rest, labels; float64."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(batch, config.tokens, config.token_width, generator=generator, dtype=torch.float64)
    order = torch.stack([torch.randperm(config.tokens, generator=generator) for _ in range(batch)])
    return (
        tokens,
        order[:, :known],
        order[:, known:],
        torch.randint(config.classes, (batch,), generator=generator),
    )


# --- losses -----------------------------------------------------------------------------------------------------


def reference_diffusion_loss(head: DenoisingHead, z: Tensor, clean: Tensor, noise: Tensor, t: int) -> float:
    """One token's loss as in DDPM and Improved DDPM, in float64."""

    def f(step: float) -> float:
        return math.cos((step / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - f(step + 1) / f(step), 0.999) for step in range(1000)]
    bars = np.cumprod(1 - np.array(betas))
    bar, before = bars[t], bars[t - 1] if t else 1.0
    noisy = math.sqrt(bar) * clean + math.sqrt(1 - bar) * noise
    out = head(noisy[None], torch.tensor([t]), z[None])[0]
    predicted, v = out[: len(clean)], out[len(clean) :]
    posterior = [(1 - bars[s - 1]) / (1 - bars[s]) * betas[s] for s in range(1, 1000)]
    log_variance = math.log(posterior[max(t - 1, 0)])

    def mean(x0: Tensor) -> Tensor:
        return (math.sqrt(before) * betas[t] * x0 + math.sqrt(1 - betas[t]) * (1 - before) * noisy) / (
            1 - bar
        )

    x0 = (noisy - math.sqrt(1 - bar) * predicted) / math.sqrt(bar)
    log_model = (v + 1) / 2 * math.log(betas[t]) + (1 - (v + 1) / 2) * log_variance
    truth = torch.distributions.Normal(mean(clean), math.exp(log_variance / 2))
    model = torch.distributions.Normal(mean(x0).detach(), (log_model / 2).exp())
    bits = torch.distributions.kl_divergence(truth, model).mean() / math.log(2)
    return ((predicted - noise) ** 2).mean() + bits


@pytest.mark.parametrize("time", [0, 1, 2, 500, 998, 999])
def test_the_diffusion_loss_and_its_gradient_equal_the_equations(time):
    model = random_djepa(dtype=torch.float64)
    generator = torch.Generator().manual_seed(time)
    clean, noise = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    z = torch.randn(model.config.width, generator=generator, dtype=torch.float64)
    weights = list(model.head.parameters())
    found = DiffusionDenoiser().loss(model.head, z[None], clean[None], noise[None], torch.tensor([time]))[0]
    expected = reference_diffusion_loss(model.head, z, clean, noise, time)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)
    for ours, theirs in zip(
        torch.autograd.grad(found, weights), torch.autograd.grad(expected, weights), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-8)


def test_the_flow_loss_equals_the_equations():
    model = random_djepa(denoiser="flow", dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    clean, noise = torch.randn(2, 7, 5, generator=generator, dtype=torch.float64)
    z = torch.randn(7, model.config.width, generator=generator, dtype=torch.float64)
    times = FlowDenoiser().random_times(7, generator)
    found = FlowDenoiser().loss(model.head, z, clean, noise, times)
    for row, t in enumerate(times.double().tolist()):
        noisy = t * clean[row] + (1 - t) * noise[row]
        velocity = model.head(noisy[None], 1000 * times[row : row + 1], z[row : row + 1])[0]
        expected = ((velocity - (clean[row] - noise[row])) ** 2).mean()
        torch.testing.assert_close(found[row], expected, atol=1e-12, rtol=1e-10)


def test_the_jepa_loss_is_smooth_l1_with_beta_two():
    generator = torch.Generator().manual_seed(4)
    ours, target = 3 * torch.randn(2, 2, 5, 8, generator=generator)
    distance = (ours - target).abs().double().numpy()
    expected = np.where(distance < 2, distance**2 / 4, distance - 1).mean()
    assert jepa_loss(ours, target).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("denoiser", ["diffusion", "flow"])
def test_training_losses_are_means_over_the_masked_tokens(denoiser):
    model = random_djepa(denoiser=denoiser, dtype=torch.float64)
    target = random_djepa(dtype=torch.float64, seed=9).context_encoder
    config = model.config
    tokens, _, _, labels = inputs(config)
    kind = denoiser_of(config)
    draws = training_draws(tokens, labels, kind, torch.Generator().manual_seed(0), classes=config.classes)
    draws.noise.data = draws.noise.double()
    denoising, jepa = training_losses(model, target, kind, tokens, labels, draws)
    count, masked = len(draws.noise), draws.wanted.shape[1]
    times = draws.times.reshape(count, 3, masked)
    losses, jepa_losses = [], []
    for row in range(3):
        places, wanted = draws.places[row : row + 1], draws.wanted[row]
        z = model.features(
            tokens[row : row + 1, places[0]], places, draws.labels[row : row + 1], wanted[None]
        )[0]
        for draw in range(count):
            clean, noise = tokens[row, wanted], draws.noise[draw, row]
            losses.append(kind.loss(model.head, z, clean, noise, times[draw, row]))
        everything = torch.arange(config.tokens)[None]
        features = target(tokens[row : row + 1], everything, labels[row : row + 1])[0, config.buffer :]
        jepa_losses.append(jepa_loss(model.projection(z), features[wanted]))
    torch.testing.assert_close(denoising, torch.cat(losses).mean(), atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(jepa, torch.stack(jepa_losses).mean(), atol=1e-6, rtol=1e-6)


def test_gradients_never_reach_the_target_encoder():
    model, target = random_djepa(), random_djepa(seed=9).context_encoder
    tokens, _, _, labels = inputs(model.config)
    tokens, kind = tokens.float(), denoiser_of(model.config)
    draws = training_draws(
        tokens, labels, kind, torch.Generator().manual_seed(0), classes=model.config.classes
    )
    denoising, jepa = training_losses(model, target, kind, tokens, labels, draws)
    (denoising + jepa).backward()
    assert all(weight.requires_grad and weight.grad is None for weight in target.parameters())
    assert all(weight.grad is not None for weight in model.parameters())


def test_without_a_target_encoder_there_is_no_jepa_loss():
    model = random_djepa()
    tokens, _, _, labels = inputs(model.config)
    kind = denoiser_of(model.config)
    draws = training_draws(
        tokens.float(), labels, kind, torch.Generator().manual_seed(0), classes=model.config.classes
    )
    assert training_losses(model, None, kind, tokens.float(), labels, draws)[1].item() == 0


def test_labels_are_dropped_as_often_as_asked():
    tokens, labels = torch.zeros(4000, 1, 1), torch.zeros(4000, dtype=torch.long)
    draws = training_draws(tokens, labels, FlowDenoiser(), torch.Generator().manual_seed(0), classes=3)
    assert set(draws.labels.tolist()) == {0, 3}
    assert (draws.labels == 3).float().mean().item() == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 25}, "width 25 is not a multiple of heads 2"),
        ({"patch": 3}, "side 4 is not a multiple of patch 3"),
        ({"depth": 0}, "depth must be a whole number from 1 to 128, got 0"),
        ({"heads": True}, "heads must be a whole number"),
        ({"classes": 10**9}, "classes must be a whole number"),
        ({"denoiser": "magic"}, "denoiser must be one of diffusion, flow, got 'magic'"),
        ({"side": 256}, "makes 65536 tokens, more than 4096"),
    ],
)
def test_sizes_that_no_model_can_have_are_refused(change, message):
    with pytest.raises(DJEPASizeError, match=message):
        DJEPAConfig(**SMALL_DJEPA | change)


def test_an_unknown_published_size_is_refused():
    with pytest.raises(DJEPASizeError, match="one of B, L, H, got 'XL'"):
        published_config("XL")
