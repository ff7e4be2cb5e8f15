"""D-JEPA's sampler: its denoisers against exact ones, the whole against a plain loop over tokens."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from jepa_core.djepa import DJEPA, DiffusionDenoiser, FlowDenoiser, denoiser_of, masked_counts, sample_tokens
from tests.core.conftest import random_djepa

KINDS = ["diffusion", "flow"]


class ExactHead:
    """The optimal denoiser of normal tokens with mean 2 and standard deviation 0.5, whatever z."""

    mean, deviation = 2.0, 0.5

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.bars = DiffusionDenoiser().alphas_cumulative

    def embed_time(self, time: Tensor) -> Tensor:
        return time.double()[:, None]

    def condition(self, z: Tensor) -> Tensor:
        return torch.zeros(len(z), 1, dtype=torch.float64)

    def modulations(self, times: Tensor, condition: Tensor) -> Tensor:
        return times[:, None] + condition

    def denoise(self, x: Tensor, time: Tensor) -> Tensor:
        if self.kind == "flow":
            signal, sigma = time / 1000, 1 - time / 1000
        else:
            bar = self.bars[time.long()]
            signal, sigma = bar.sqrt(), (1 - bar).sqrt()
        variance = (signal * self.deviation) ** 2 + sigma**2
        clean = self.mean + signal * self.deviation**2 / variance * (x - signal * self.mean)
        noise = sigma / variance * (x - signal * self.mean)
        if self.kind == "flow":
            return clean - noise
        # -1: the posterior's own variance, the smaller of the two bounds
        return torch.cat([noise, -torch.ones_like(noise)], 1)


@pytest.mark.parametrize("kind", KINDS)
def test_an_exact_head_gives_the_tokens_distribution(kind):
    denoiser = FlowDenoiser(time_shift=2.0) if kind == "flow" else DiffusionDenoiser()
    noise = torch.randn(
        denoiser.draws(400), 20_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    drawn = denoiser.sample(ExactHead(kind), torch.zeros(20_000, 1), noise, steps=400)
    assert drawn.mean().item() == pytest.approx(2, abs=0.01)
    assert drawn.std().item() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_temperature_narrows_the_distribution(kind):
    denoiser = FlowDenoiser() if kind == "flow" else DiffusionDenoiser()
    noise = torch.randn(
        denoiser.draws(100), 5000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    z = torch.zeros(5000, 1)
    usual, cold = (
        denoiser.sample(ExactHead(kind), z, noise, steps=100, temperature=t).std() for t in (1.0, 0.9)
    )
    assert cold < 0.95 * usual


@pytest.mark.parametrize("kind", KINDS)
def test_guidance_extrapolates_from_the_unconditional_half(kind):
    model = random_djepa(denoiser=kind, dtype=torch.float64)
    denoiser = denoiser_of(model.config)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4, model.config.width, generator=generator, dtype=torch.float64)
    noise = torch.randn(denoiser.draws(1), 2, 5, generator=generator, dtype=torch.float64)
    found = denoiser.sample(model.head, z, noise, steps=1, guidance_scale=3.0)
    time = torch.full((2,), 0 if kind == "flow" else 999)
    wanted, free = (model.head(noise[0], time, half)[:, :5] for half in z.chunk(2))
    answer = free + 3 * (wanted - free)
    if kind == "flow":
        expected = noise[0] + answer
    else:
        bar = denoiser.alphas_cumulative[999]
        expected = ((noise[0] - (1 - bar).sqrt() * answer) / bar.sqrt()).clamp(-8, 8)
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-8)


def naive_sample(
    model: DJEPA, label: int, seed: int, *, steps: int, denoising_steps: int, cfg: float, temperature: float
) -> Tensor:
    """One image (N, w) by a plain loop: every block on every row, every masked token denoised, nothing reused."""
    config, denoiser = model.config, denoiser_of(model.config)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(config.tokens, generator=generator).tolist()
    tokens = torch.zeros(config.tokens, config.token_width)
    revealed: list[int] = []
    for masked in masked_counts(config.tokens, steps):
        chosen = order[len(revealed) : config.tokens - masked]
        shape = (denoiser.draws(denoising_steps), len(chosen), config.token_width)
        noise = torch.randn(shape, generator=generator)
        scale = 1 + (cfg - 1) * (config.tokens - masked) / config.tokens
        features = []
        for which in (label, config.classes):
            places = torch.tensor([revealed], dtype=torch.long)
            context = model.context_encoder(tokens[None, revealed], places, torch.tensor([which]))
            x = model.predictor.embed(context)[0]
            image = model.predictor.mask_token[0].expand(config.tokens, -1).clone()
            image[revealed] = x[config.buffer :]
            x = torch.cat([x[: config.buffer], image + model.predictor.position[0]])[None]
            for block in model.predictor.blocks:
                x = block(x)
            features.append(model.predictor.norm(x)[0, config.buffer :])
        drawn = torch.zeros(config.tokens, config.token_width)
        for row, token in enumerate(chosen):
            z = torch.stack([feature[token] for feature in features])
            (drawn[token],) = denoiser.sample(
                model.head,
                z if scale != 1 else z[:1],
                noise[:, row : row + 1],
                steps=denoising_steps,
                guidance_scale=scale,
                temperature=temperature,
            )
        tokens[chosen] = drawn[chosen]
        revealed += chosen
    return tokens


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cfg", [1.0, 2.5])
def test_a_batch_equals_the_naive_loop_image_by_image(kind, cfg):
    model = random_djepa(denoiser=kind)
    labels, seeds = [2, 0, 2, 1], [5, 6, 7, 2**63]
    settings = {"steps": 6, "denoising_steps": 5, "cfg": cfg, "temperature": 0.9}
    found = sample_tokens(model, torch.tensor(labels), seeds, **settings)
    expected = torch.stack(
        [naive_sample(model, *pair, **settings) for pair in zip(labels, seeds, strict=True)]
    )
    # a random head's tokens are of any size
    size = expected.abs().amax((1, 2), keepdim=True)
    torch.testing.assert_close(found / size, expected / size, atol=1e-4, rtol=0)
    alone = sample_tokens(model, torch.tensor(labels[1:2]), seeds[1:2], **settings)
    torch.testing.assert_close(alone / size[1], found[1:2] / size[1], atol=1e-4, rtol=0)
    again = sample_tokens(model, torch.tensor(labels), seeds, **settings)
    assert torch.equal(again, found)


def test_other_seeds_and_classes_give_other_images():
    model = random_djepa()
    images = sample_tokens(
        model, torch.tensor([0, 0, 1, 3]), [1, 2, 1, 1], steps=4, denoising_steps=3, cfg=2.0
    )
    assert (torch.cdist(images.flatten(1), images.flatten(1)) + 9 * torch.eye(4) > 0.1).all()


def test_the_global_generator_is_left_alone():
    model, before = random_djepa(), torch.random.get_rng_state()
    sample_tokens(model, torch.tensor([0]), [1], steps=2, denoising_steps=2)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_given_tokens_are_returned_unchanged():
    model = random_djepa()
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(2, 16, 5, generator=generator)
    labels = torch.tensor([0, 1])
    everything = torch.ones(16, dtype=torch.bool)
    assert torch.equal(sample_tokens(model, labels, [1, 2], steps=9, given=given, known=everything), given)
    some = torch.rand(16, generator=generator) < 0.5
    settings = {"steps": 3, "denoising_steps": 3, "given": given, "known": some}
    found = sample_tokens(model, labels, [1, 2], **settings)
    assert torch.equal(found[:, some], given[:, some])
    assert (found[:, ~some] - given[:, ~some]).abs().max() > 0.1
    # what is known decides what is drawn
    other = sample_tokens(model, labels, [1, 2], **settings | {"given": -given})
    assert (found[:, ~some] - other[:, ~some]).abs().max() > 0.01
    with pytest.raises(ValueError, match=rf"from 1 to {int((~some).sum())}"):
        sample_tokens(model, labels, [1, 2], steps=16, given=given, known=some)


def test_every_step_reports_what_is_known():
    model = random_djepa()
    seen = []
    final = sample_tokens(
        model,
        torch.tensor([0, 1]),
        [1, 2],
        steps=5,
        denoising_steps=2,
        on_step=lambda done, tokens, known: seen.append((done, tokens.clone(), known)),
    )
    assert [done for done, _, _ in seen] == [1, 2, 3, 4, 5]
    assert [known.sum(1).tolist() for _, _, known in seen] == [
        [16 - left] * 2 for left in masked_counts(16, 5)
    ]
    for _, tokens, known in seen:
        assert torch.equal(tokens[known], final[known])
        assert (tokens[~known] == 0).all()


def test_an_error_in_a_report_ends_sampling():
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample_tokens(random_djepa(), torch.tensor([0]), [1], steps=4, denoising_steps=2, on_step=stop)


def test_guidance_is_off_where_its_scale_is_one():
    model = random_djepa()
    called = []
    model.context_encoder.register_forward_hook(lambda _module, args, _out: called.append(len(args[2])))
    sample_tokens(model, torch.tensor([0, 0, 0, 1]), [1, 2, 3, 4], steps=2, denoising_steps=1)
    # images of one class share the first step
    assert called == [2, 4]
    called.clear()
    sample_tokens(model, torch.tensor([0, 0, 0, 1]), [1, 2, 3, 4], steps=2, denoising_steps=1, cfg=2.0)
    assert called == [3, 8]


def test_time_shift_moves_steps_toward_the_noise():
    even, shifted = (
        FlowDenoiser(shift).sample(
            ExactHead("flow"), torch.zeros(1, 1), torch.zeros(1, 1, 1).double(), steps=3
        )
        for shift in (1.0, 3.0)
    )
    # three Euler steps by hand, from x = 0
    for result, times in ((even, [0, 1 / 3, 2 / 3, 1]), (shifted, [0, 1 / 7, 2 / 5, 1])):
        x = 0.0
        for now, then in pairwise(times):
            variance = (now * 0.5) ** 2 + (1 - now) ** 2
            clean = 2 + now * 0.25 / variance * (x - now * 2)
            noise = (1 - now) / variance * (x - now * 2)
            x += (then - now) * (clean - noise)
        assert math.isclose(result.item(), x, abs_tol=1e-6)


def test_modulations_made_one_time_at_a_time_are_the_same(monkeypatch):
    model = random_djepa(denoiser="flow")
    settings = {"steps": 3, "denoising_steps": 7, "cfg": 2.0}
    expected = sample_tokens(model, torch.tensor([1]), [3], **settings)
    monkeypatch.setattr("jepa_core.djepa.model.MODULATION_ENTRIES", 1)
    torch.testing.assert_close(
        sample_tokens(model, torch.tensor([1]), [3], **settings), expected, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("labels", "seeds", "steps", "message"),
    [
        ([4], [1], 2, r"labels must be from 0 to 2, or 3 for no class, got \[4\]"),
        ([-1], [1], 2, r"got \[-1\]"),
        ([0, 1], [1], 2, "got 1 seeds and 2 labels"),
        ([0], [1], 17, "steps must be from 1 to 16"),
        ([0], [1], 0, "steps must be from 1 to 16"),
    ],
)
def test_labels_seeds_and_steps_that_do_not_fit_are_refused(labels, seeds, steps, message):
    with pytest.raises(ValueError, match=message):
        sample_tokens(random_djepa(), torch.tensor(labels), seeds, steps=steps, denoising_steps=1)
