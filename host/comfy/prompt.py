"""Prompts: the host's text encoders (CLIP), and the positive prompt of a run."""

from copy import copy
from typing import Any

import torch
from torch import Tensor

from .required import calc_cond_batch, encode_model_conds

# What encoding gives -> the name in an entry of a run's conditioning, where they differ.
_NAMES = {"cond": "cross_attn"}
SAME_PROMPT = 1e-3  # relative; two encodings of one text may be rounded otherwise


def held_clip(clip: Any, patcher: Any) -> Any:
    """A copy of CLIP over this patcher's network. Encoding loads nothing: the caller keeps the network on its device."""
    held = copy(clip)
    held.patcher, held.cond_stage_model = patcher, patcher.model
    held.load_model = lambda *_, **__: patcher
    return held


def text_encoder(clip: Any, name: str) -> Any:
    """The encoder of a CLIP that reads the tokens of this name ("l", "g", "t5xxl"); None if it takes no embeddings."""
    stage = clip.cond_stage_model
    found = getattr(stage, f"clip_{name}", None) or getattr(stage, name, None)
    return found if hasattr(found, "process_tokens") else None


def input_embedding(clip: Any, name: str, token: int) -> Tensor:
    """The input embedding of a token, (D,) float32, on the encoder's device."""
    table = text_encoder(clip, name).transformer.get_input_embeddings()
    numbers = torch.tensor([token], device=table.weight.device)
    row: Tensor = table(numbers, out_dtype=torch.float32)[0]
    return row


def encoded(clip: Any, tokens: dict) -> dict[str, Tensor]:
    """What the host makes of tokens: "cond" (1, L, D), and for some models "pooled_output" (1, P) and a mask (1, L)."""
    parts = clip.encode_from_tokens(tokens, return_pooled=True, return_dict=True)
    return {name: part for name, part in parts.items() if isinstance(part, Tensor)}


def places_of(positive: list[dict], cond: Tensor) -> list[int]:
    """The entries of a run's positive conditioning that hold this prompt, (1, L, D)."""
    return [place for place, entry in enumerate(positive) if _is_same(entry.get("cross_attn"), cond)]


def _is_same(one: Tensor | None, other: Tensor) -> bool:
    if one is None or one.shape != other.shape:
        return False
    other = other.to(one)
    return bool((one - other).norm() <= SAME_PROMPT * other.norm())


def with_prompt(entry: dict, prompt: dict[str, Tensor], model: Any, kwargs: dict) -> dict:
    """An entry of a run's conditioning with another prompt, as the host would have made it.

    Args:
        prompt: as of `encoded`, with one row for all images or one for each.
        model: what the host passes to sampler functions. kwargs: the arguments of its call.
    """
    own = {_NAMES.get(name, name): part for name, part in prompt.items()}
    base_model = model.inner_model.inner_model
    (changed,) = encode_model_conds(
        base_model.extra_conds,
        [{**entry, **own}],
        model.noise,
        model.noise.device,
        "positive",
        latent_image=model.latent_image,
        denoise_mask=kwargs.get("denoise_mask"),
        seed=kwargs.get("seed"),
    )
    return dict(changed)


def estimate(model: Any, positive: list[dict], x: Tensor, sigmas: Tensor, kwargs: dict) -> Tensor:
    """The clean estimate for the positive prompt alone, without classifier-free guidance and its hooks.

    Args:
        model: what the host passes to sampler functions; its inpainting mask applies. kwargs: the arguments of its call.
    """
    alone = copy(model)
    alone.inner_model = _PromptAlone(model.inner_model, positive)
    denoised: Tensor = alone(x, sigmas, **kwargs)
    return denoised


class _PromptAlone:
    """Takes the place of the guider in what the host passes to sampler functions."""

    def __init__(self, guider: Any, positive: list[dict]) -> None:
        self._guider = guider
        self._positive = positive

    def __getattr__(self, name: str) -> Any:
        return getattr(self._guider, name)

    def __call__(self, x: Tensor, sigmas: Tensor, model_options: dict, seed: int | None = None) -> Tensor:
        (denoised,) = calc_cond_batch(self.inner_model, [self._positive], x, sigmas, model_options)
        return denoised  # type: ignore[no-any-return]
