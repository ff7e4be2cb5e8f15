"""Before a run: load what it differentiates, or hold the denoiser constant, and set up the gradient check."""

from collections.abc import Sequence
from typing import Any

from ..comfy.models import compute_dtype, models_in_patches, patches_of
from ..comfy.required import load_models_gpu
from ..comfy.sampling import has_weight_hooks
from ..comfy.streaming import is_dynamic
from ..gradient.estimate import GradientChain
from ..gradient.gradient_check import DECODER, DENOISER, GradientCheck, kinds
from ..gradient.residency import keep_whole, refuse_streamed
from ..options import DENOISER_CONSTANT
from .trace import Trace

# Why the denoiser is held constant. The first is found before a run, from sizes alone; the others when the host has loaded.
TOO_LARGE_TOGETHER = "the denoiser, VAE and encoders do not fit this device together"
TOO_LARGE = "the denoiser does not fit this device whole"
TOO_LARGE_WITH_OTHERS = "the denoiser and the models that run with it do not fit this device whole"


def held_constant(why: str) -> str:
    """The notice that the denoiser is not differentiated although the user asked for it."""
    return f"{why}: {DENOISER_CONSTANT} (a different image than through the denoiser)"


def hold_constant(chain: GradientChain, trace: Trace, why: str) -> None:
    """Continue with the denoiser's output held constant, and add a notice to the trace."""
    chain.way = chain.way.constant()
    trace.notice(held_constant(why))


def make_differentiable(
    guider: Any, vae: Any | None, encoders: Sequence[Any], chain: GradientChain, trace: Trace
) -> None:
    """Load all weights of what this run differentiates; if the denoiser's do not fit, hold it constant.

    Args:
        guider: the host's guider of this run. vae: of the decoder, if there is one. encoders: patchers of the encoders.

    Raises:
        ValueError: the decoder or an encoder does not fit on the device.
    """
    decoders = [vae.patcher] if vae else []
    needed = [*decoders, *encoders]
    others = [guider.model_patcher, *guider.loaded_models]
    patches = models_in_patches(guider.model_patcher)
    if chain.way.through_denoiser:
        if has_weight_hooks(guider):
            why = "a LoRA that comes with the conditioning changes the denoiser within a step"
            hold_constant(chain, trace, why)
        elif any(map(is_dynamic, patches)):
            hold_constant(chain, trace, "a patch of another node brings a model that the host streams")
    if chain.way.through_denoiser:
        # other streamed models may take no part in the call; if they do, the gradient check finds out
        parts = [part for part in (*guider.loaded_models, *patches) if not is_dynamic(part)]
        streamed = keep_whole([*needed, guider.model_patcher, *parts], others)
        if streamed:
            alone = all(patcher.model is guider.model_patcher.model for patcher in streamed)
            hold_constant(chain, trace, TOO_LARGE if alone else TOO_LARGE_WITH_OTHERS)
            load_models_gpu(others)
    keep_whole(needed, others)
    for patcher in decoders:
        refuse_streamed(patcher, "the VAE")
    for patcher in encoders:
        refuse_streamed(patcher, "the JEPA encoder")


def gradient_check(guider: Any, vae: Any | None) -> GradientCheck:
    """The gradient check for the networks of a run, with a key of what else their gradients depend on."""
    base_model = guider.inner_model
    weights, others = patches_of(guider.model_patcher)
    key = (weights, *map(kinds, (others, guider.conds, guider.model_options)))
    denoiser = (base_model, key, compute_dtype(base_model))
    decoder = {DECODER: (vae.first_stage_model, None, vae.vae_dtype)} if vae else {}
    return GradientCheck({DENOISER: denoiser, **decoder})
