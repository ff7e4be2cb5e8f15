"""MinorityPrompt as a MODEL patch: a token of the prompt is learned at some steps of a run (arXiv 2410.07838)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..comfy.prompt import held_clip, places_of
from ..comfy.required import interrupt_check
from ..comfy.sampling import (
    go_on_with,
    has_weight_hooks,
    sampler_wrapper,
    wrap_run,
    wrap_sampler,
    wrapped_sampler,
)
from ..comfy.streaming import is_dynamic
from ..gradient.prompt_token import prompt_token
from ..gradient.residency import resident
from .attachment import not_differentiable, run_with_resident_parts
from .guidance import KEY as GUIDANCE_KEY
from .prompt_run import KEY, PromptLearning, PromptPatch, PromptRun
from .refusals import check_makes_pictures, check_one_device, check_sampling


def apply_minority_prompt(
    model: Any, clip: Any, text: str, learning: PromptLearning, on_pass: Callable[[], None] = interrupt_check
) -> tuple[Any, list]:
    """Return a clone of MODEL that learns a token at the end of the prompt `text`, and the prompt's CONDITIONING.

    Args:
        clip: the CLIP that encodes the sampler's positive prompt, `text`.
        on_pass: called after each iteration; may raise to stop.

    Raises:
        ValueError: models that cannot be differentiated; a word that is not a single token.
    """
    _check_unguided(model)
    check_sampling(model)
    check_makes_pictures(model)
    check_one_device(model)
    token = prompt_token(clip, text, learning.word)
    same_device = clip.patcher.load_device == model.load_device
    if why := not_differentiable(model, [clip.patcher] if same_device else []):
        raise ValueError(
            f"MinorityPrompt differentiates the denoiser and the text encoder, and cannot: {why}. Use smaller models, "
            "or remove the patch."
        )
    plain = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    held = held_clip(clip, resident(clip.patcher))
    wrapper = MinorityPrompt(PromptPatch(held, token, plain[0][0], learning, on_pass))
    patched = resident(model) if is_dynamic(model) else model.clone()
    patched.set_additional_models(KEY, [held.patcher])
    wrap_sampler(patched, KEY, wrapper)
    wrap_run(patched, KEY, wrapper.run)
    return patched, plain


@dataclass(frozen=True)
class MinorityPrompt:
    """The wrapper of a MODEL's sampler calls."""

    patch: PromptPatch

    def run(self, executor: Any, *args: Any, **more: Any) -> Any:
        """A run, refused before the host loads anything for it."""
        guider = executor.class_obj
        check_one_device(guider.model_patcher)  # again: a later node may have changed it
        check_conditioning(guider, self.patch.cond)
        return run_with_resident_parts(executor, *args, **more)

    def __call__(self, executor: Any, guider: Any, sigmas: Tensor, extra_args: dict, *args: Any) -> Tensor:
        run = PromptRun(self.patch, wrapped_sampler(executor), guider)
        try:
            run.prepare()
            result: Tensor = go_on_with(executor, run.sampler())(guider, sigmas, extra_args, *args)
            return result
        finally:
            vars(run).clear()  # a reference cycle would keep the model on the device


def check_conditioning(guider: Any, cond: Tensor) -> None:
    """Refuse a run in which the token has no place.

    Args:
        guider: the host's guider of this run. cond: the encoding of the node's text, (1, L, D).

    Raises:
        ValueError: says what to connect or remove.
    """
    _check_unguided(guider.model_patcher)  # again: a later node may have changed it
    if has_weight_hooks(guider):
        raise ValueError(
            "MinorityPrompt cannot differentiate a model whose weights a LoRA in the conditioning changes; apply the LoRA "
            "to the model instead"
        )
    if not places_of(guider.conds.get("positive", []), cond):
        raise ValueError(
            "MinorityPrompt does not find its text in the sampler's positive prompt; connect its output positive there, or "
            "encode the same text with the same CLIP"
        )


def _check_unguided(model: Any) -> None:
    if sampler_wrapper(model, GUIDANCE_KEY) is not None:
        raise ValueError(
            "MinorityPrompt does not run together with JEPA Guidance, Self-Guided Minority Sampling or JEPA Rare Search "
            "on one MODEL; remove one of them"
        )
