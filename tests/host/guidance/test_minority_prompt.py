"""MinorityPrompt against a plain reference written from the paper, and in the host's own samplers."""

from __future__ import annotations

import math

import comfy.samplers
import pytest
import torch
import torch.nn.functional as F
from jepa_guidance.host.gradient.prompt_token import distance, token_gradients
from jepa_guidance.host.gradient.random_state import own_noise
from jepa_guidance.host.guidance import prompt_run
from jepa_guidance.host.guidance.minority_prompt import apply_minority_prompt
from jepa_guidance.host.guidance.prompt_run import PromptLearning
from jepa_guidance.host.guidance.schedule import Schedule

from tests.host.clips import tiny_clip

TEXT = "a small red robot"
END = 49407  # the token that ends a prompt, and pads it
HOW = {"steps": 4, "sampler_name": "euler", "scheduler": "normal"}


@pytest.fixture
def clip():
    return tiny_clip()


def learned(model, clip, text=TEXT, start=0.0, end=1.0, interval=1, iterations=2, **settings):
    """The patched MODEL and the prompt's conditioning, made as nodes do."""
    on_pass = {"on_pass": settings.pop("on_pass")} if "on_pass" in settings else {}
    schedule = Schedule(start_percent=start, end_percent=end, interval=interval)
    learning = PromptLearning(schedule, iterations=iterations, **settings)
    with torch.inference_mode():
        return apply_minority_prompt(model, clip, text, learning, **on_pass)


# --- the objective and its gradient -----------------------------------------------------------------------------


def test_the_objective_holds_one_side_of_each_distance_constant():
    generator = torch.Generator().manual_seed(1)
    clean, again = (torch.randn(2, 3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    leaves = clean.requires_grad_(), again.requires_grad_()
    value = distance(*leaves, 0.5)
    norm = (clean - again).flatten(1).norm(dim=1)
    torch.testing.assert_close(value, 1.5 * norm)
    unit = (clean - again) / norm.reshape(2, 1, 1)
    found = torch.autograd.grad(value.sum(), leaves)
    torch.testing.assert_close(found, (0.5 * unit, -unit))


def test_the_gradient_in_two_parts_is_that_of_the_whole():
    generator = torch.Generator().manual_seed(1)
    one, two = (torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    unused = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    leaves = {"l": one, "g": two, "t": unused}
    leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items()}

    def encode(vectors, in_place=True):
        both = torch.cat([vectors["l"].sin(), vectors["g"] ** 2], 1)
        if in_place:  # as the host's text encoders do
            both += both.cos()
        else:
            both = both + both.cos()
        return {
            "cond": both,
            "pooled_output": vectors["g"].exp(),
            "other": vectors["t"] * 2,
            "mask": torch.ones(3, 1),
        }

    def objective(prompts):
        return (prompts["cond"].prod(1) * prompts["pooled_output"].sum(1)) * prompts["mask"].flatten()

    with torch.enable_grad():
        found = token_gradients(leaves, encode, objective, torch.enable_grad)
        value = objective(encode(leaves, in_place=False)).sum()
        expected = torch.autograd.grad(value, [leaves["l"], leaves["g"]])
    torch.testing.assert_close([found["l"], found["g"]], list(expected))
    assert not found["t"].any()


# --- a run ------


def encode_plainly(weights: dict, tokens: list[int], place: int, vectors: torch.Tensor) -> torch.Tensor:
    """The host's text encoder written out: tokens of one prompt, with each row of `vectors` in place of one of them."""
    x = weights["embeddings.token_embedding.weight"][torch.tensor(tokens)].expand(len(vectors), -1, -1)
    x = torch.cat([x[:, :place], vectors.unsqueeze(1), x[:, place + 1 :]], 1)
    x = x + weights["embeddings.position_embedding.weight"]

    def linear(x, name):
        return F.linear(x, weights[name + ".weight"], weights[name + ".bias"])

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], weights[name + ".weight"], weights[name + ".bias"])

    for layer in range(3):
        own = f"encoder.layers.{layer}."
        y = norm(x, own + "layer_norm1")
        heads = [
            linear(y, own + f"self_attn.{part}_proj").unflatten(-1, (2, -1)).transpose(1, 2) for part in "qkv"
        ]
        y = F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(2)
        x = x + linear(y, own + "self_attn.out_proj")
        y = linear(norm(x, own + "layer_norm2"), own + "mlp.fc1")
        x = x + linear(y * torch.sigmoid(1.702 * y), own + "mlp.fc2")
    return norm(x, "final_layer_norm")


class Plain:
    """Denoiser and text encoder of tiny models as plain functions, for plain autograd or in float64."""

    def __init__(self, network, clip, dtype=torch.float32):
        plain_weights(network)
        self.unet, self.sampling = network.diffusion_model.to(dtype), network.model_sampling
        state = clip.cond_stage_model.clip_l.transformer.text_model.state_dict()
        self.weights = {name: one.clone().to(dtype) for name, one in state.items()}
        self.table = self.weights["embeddings.token_embedding.weight"]
        tokenizer = clip.tokenizer.clip_l.tokenizer
        (self.word,) = tokenizer("cool")["input_ids"][1:-1]
        self.ids = tokenizer(TEXT)["input_ids"]
        self.written = self.encoded(
            [*self.ids, *[END] * (77 - len(self.ids))], 1, self.table[self.ids[1]][None]
        )

    def encoded(self, tokens, place, vectors):
        return encode_plainly(self.weights, tokens, place, vectors)

    def learnt(self, vectors):
        """The prompt with each of the vectors at its end."""
        tokens = [*self.ids[:-1], self.word, *[END] * (77 - len(self.ids))]
        return self.encoded(tokens, len(self.ids) - 1, vectors)

    def denoised(self, x, sigma, prompt):
        sigmas = torch.as_tensor(sigma).to(x).expand(len(x))
        times = self.sampling.timestep(sigmas).float()
        output = self.unet(
            self.sampling.calculate_input(sigmas, x), times, context=prompt.expand(len(x), -1, -1)
        )
        return self.sampling.calculate_denoised(sigmas, output, x)


def reference(tiny, clip, sigmas, noise, *, cfg, interval, iterations, learning_rate, balance, seed):
    """The paper's algorithm with Euler on the tiny eps model: one graph from the token to the objective."""
    plain = Plain(tiny.model.model, clip)
    vectors, learnt = plain.table[plain.word].expand(len(noise), -1).clone(), plain.written
    x = noise * math.sqrt(1 + float(sigmas[0]) ** 2)
    for step in range(len(sigmas) - 1):
        sigma, following = sigmas[step], sigmas[step + 1]
        if step % interval == 0:
            vectors = vectors.detach().requires_grad_()
            optimiser = torch.optim.Adam([vectors], lr=learning_rate)
            every = plain.sampling.sigmas
            level = every[999 - (every.log() - following.clamp(min=1e-9).log()).abs().argmin()]
            for iteration in range(iterations):
                x0 = plain.denoised(x, sigma, plain.learnt(vectors))
                renoised = x0 + level * own_noise(x[:1], (seed, float(sigma), iteration))
                again = plain.denoised(renoised, level, plain.written)
                loss = -(x0.detach() - again).flatten(1).norm(dim=1).sum()
                loss = loss - balance * (x0 - again.detach()).flatten(1).norm(dim=1).sum()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            learnt = plain.learnt(vectors.detach())
        with torch.no_grad():
            negative = plain.denoised(x, sigma, tiny.negative[0][0])
            x0 = negative + cfg * (plain.denoised(x, sigma, learnt) - negative)
            x = x0 + following / sigma * (x - x0)
    return x


def plain_weights(module: torch.nn.Module) -> None:
    """The host's weights are inference tensors, which plain autograd cannot use."""
    for part in module.modules():
        for table in (part._parameters, part._buffers):
            for name, weight in table.items():
                if weight is not None:
                    own = weight.clone()
                    table[name] = torch.nn.Parameter(own, False) if table is part._parameters else own


@pytest.mark.parametrize("kind", ["EPS", "FLOW"])
def test_the_gradient_in_a_run_is_the_finite_difference(tiny, clip, stock, monkeypatch, kind):
    """That of the host's networks in float32, against differences of the same written out in float64."""
    steps, seen = [], []

    def watched(model, positive, x, sigmas, kwargs):
        seen.append((x.detach().double(), sigmas[0].double()))
        return estimate(model, positive, x, sigmas, kwargs)

    def check(vectors, encode, objective, iterations, learning_rate, guard, on_pass):
        leaves = {name: own.clone().requires_grad_() for name, own in vectors.items()}
        seen.clear()
        found = token_gradients(leaves, encode, lambda prompts: objective(prompts, 0), guard)["l"]
        steps.append((seen[0], seen[1], vectors["l"], found))
        return vectors

    estimate = prompt_run.estimate
    monkeypatch.setattr(prompt_run, "learn", check)
    monkeypatch.setattr(prompt_run, "estimate", watched)
    model = tiny.make_model(kind)
    patched, positive = learned(model, clip, balance=0.4)
    stock(patched, tiny, positive=positive, **HOW)
    assert len(steps) == 4
    with torch.inference_mode(False), torch.no_grad():
        plain = Plain(model.model, clip, torch.float64)
        for (x, sigma), (noisy, level), vectors, found in steps:
            vectors = vectors.double()
            start = plain.denoised(x, sigma, plain.learnt(vectors))
            again = plain.denoised(noisy, level, plain.written)  # sg(x0')
            signal = 1 - level if kind == "FLOW" else 1.0

            def objective(
                at, x=x, sigma=sigma, noisy=noisy, level=level, start=start, again=again, signal=signal
            ):
                clean = plain.denoised(x, sigma, plain.learnt(at))
                moved = plain.denoised(noisy + signal * (clean - start), level, plain.written)
                return (start - moved).flatten(1).norm(dim=1) + 0.4 * (clean - again).flatten(1).norm(dim=1)

            for seed in range(2):
                direction = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(seed)).double()
                high, low = objective(vectors + 1e-4 * direction), objective(vectors - 1e-4 * direction)
                measured, predicted = (high - low) / 2e-4, (found.double() * direction).sum(1)
                torch.testing.assert_close(predicted, measured, rtol=2e-3, atol=2e-3 * float(found.norm()))


@pytest.mark.parametrize(("interval", "balance", "cfg"), [(1, 1.0, 3.0), (2, 0.3, 1.0)])
def test_a_run_is_the_papers_loop(tiny, clip, stock, interval, balance, cfg):
    settings = {"iterations": 3, "learning_rate": 0.02, "balance": balance}
    model, positive = learned(tiny.model, clip, interval=interval, **settings)
    found = stock(model, tiny, positive=positive, cfg=cfg, **HOW)
    plain = stock(tiny.model, tiny, positive=positive, cfg=cfg, **HOW)
    sigmas = comfy.samplers.calculate_sigmas(tiny.model.model.model_sampling, "normal", 4)
    noise = torch.randn(2, 4, 8, 8, generator=torch.manual_seed(5))
    with torch.inference_mode(False), torch.enable_grad():
        expected = reference(
            tiny, clip, sigmas.clone(), noise, cfg=cfg, interval=interval, seed=5, **settings
        )
    expected = expected / 0.18215
    moved = (found - plain).abs().max()
    assert moved > 0.05
    assert (found - expected).abs().max() <= 0.01 * moved + 1e-5 * expected.abs().max()
