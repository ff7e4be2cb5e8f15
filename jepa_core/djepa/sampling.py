"""D-JEPA's sampler: generalised next-token prediction in random order (arXiv 2410.03755, section 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .denoising import denoiser_of
from .masking import masked_counts, random_orders
from .model import DJEPA, take

OnStep = Callable[[int, Tensor, Tensor], None]


@torch.no_grad()
def sample_tokens(
    model: DJEPA,
    labels: Tensor,
    seeds: Sequence[int],
    *,
    steps: int,
    denoising_steps: int = 100,
    cfg: float = 1.0,
    temperature: float = 1.0,
    time_shift: float = 1.0,
    given: Tensor | None = None,
    known: Tensor | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Draw the tokens of a batch of images.

    Each image draws from its own seed, so it is the same in any batch. Classifier-free guidance grows with the
    number of known tokens: at a step after which m of N tokens are masked, its scale is 1 + (cfg - 1) (N - m) / N.

    Args:
        labels: (B,) in 0..classes, on the model's device.
        seeds: one per image.
        steps: S, the number of sets of tokens, predicted one after another; 1 to the number of unknown tokens.
        denoising_steps: per token, 1 to 1000.
        cfg: guidance scale once all tokens are known; 1 turns guidance off and halves the cost.
        temperature: factor of the denoiser's noise; see its `sample`.
        time_shift: for flow matching, see FlowDenoiser.
        given: (B, N, w), tokens to keep; requires `known`.
        known: (N,) bool, which tokens of `given` are kept in every image, unchanged.
        on_step: called after each step with the number of steps done, the tokens (B, N, w) and which of them
            are known, (B, N) bool.

    Returns:
        (B, N, w) float32

    Raises:
        ValueError: steps is out of range, a label is not a class, or the numbers of seeds and labels differ.
    """
    config = model.config
    device = labels.device
    if len(seeds) != len(labels):
        raise ValueError(
            f"seeds must have one entry for each label, got {len(seeds)} seeds and {len(labels)} labels"
        )
    if not 0 <= int(labels.min()) <= int(labels.max()) <= config.classes:
        raise ValueError(
            f"labels must be from 0 to {config.classes - 1}, or {config.classes} for no class, got {labels.tolist()}"
        )
    denoiser = denoiser_of(config, time_shift=time_shift)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    order = random_orders(config.tokens, generators).to(device)
    tokens = torch.zeros(len(labels), config.tokens, config.token_width, device=device)
    revealed = 0
    if given is not None and known is not None:
        known = known.to(device)
        tokens = torch.where(known[:, None], given.to(tokens), tokens)
        # known tokens first, the others in their random order
        order = order.gather(1, known[order].int().argsort(dim=1, descending=True, stable=True))
        revealed = int(known.sum())
        if revealed == config.tokens:
            return tokens
    free = torch.full_like(labels, config.classes)
    begun = revealed
    for step, masked in enumerate(masked_counts(config.tokens - begun, steps), 1):
        after = config.tokens - masked
        places, wanted = order[:, :revealed], order[:, revealed:after]
        scale = 1 + (cfg - 1) * after / config.tokens
        shape = (denoiser.draws(denoising_steps), after - revealed, config.token_width)
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators], 1)
        asked = labels if scale == 1 else torch.cat([labels, free])
        z = _features(model, tokens, places, asked, wanted)
        drawn = denoiser.sample(
            model.head,
            z.flatten(0, 1),
            noise.flatten(1, 2).to(device),
            steps=denoising_steps,
            guidance_scale=scale,
            temperature=temperature,
        )
        index = wanted[..., None].expand(-1, -1, config.token_width)
        tokens = tokens.scatter(1, index, drawn.unflatten(0, wanted.shape))
        revealed = after
        if on_step is not None:
            seen = torch.zeros(order.shape, dtype=torch.bool, device=device).scatter(
                1, order[:, :revealed], True
            )
            on_step(step, tokens, seen)
    return tokens


def _features(model: DJEPA, tokens: Tensor, places: Tensor, labels: Tensor, wanted: Tensor) -> Tensor:
    """z (L, M, width) of the wanted tokens for labels (L,), where tokens (B, N, w) is repeated L / B times.

    While no token is known, images of the same label differ only in the wanted rows, so the rest is computed once.
    """
    repeats = len(labels) // len(tokens)
    places, wanted = places.repeat(repeats, 1), wanted.repeat(repeats, 1)
    if places.shape[1] > 0:
        return model.features(take(tokens.repeat(repeats, 1, 1), places), places, labels, wanted)
    distinct, which = labels.unique(return_inverse=True)
    everything = torch.arange(model.config.tokens, device=labels.device).expand(len(distinct), -1)
    nothing = tokens.new_zeros(len(distinct), 0, tokens.shape[2])
    z = model.features(nothing, places[: len(distinct)], distinct, everything)
    return take(z[which], wanted)
