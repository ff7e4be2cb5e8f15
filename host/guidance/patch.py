"""JEPA guidance as a MODEL patch, for any stock sampler (arXiv 2605.24631, algorithm 1)."""

from collections.abc import Callable, Sequence
from typing import Any

from ...jepa_core import Reference, has_fast_bfloat16
from ..comfy.required import interrupt_check
from ..encoders.host_encoder import AnyEncoder, HostEncoder, patchers
from ..gradient.chain import LatentGradient
from ..gradient.decoders import LatentDecoder, choose_decoder
from ..gradient.estimate import GradientChain
from ..gradient.image_gradient import ImageGradient
from ..gradient.ways import Way
from ..options import (
    COLD,
    DENOISER_CONSTANT,
    ENCODER_RESOLUTION,
    FULL,
    JEPA_GUIDANCE,
    NOVELTY,
    NOVELTY_JUDGE,
    SCORE,
    THROUGH_DENOISER,
    TRACKED,
)
from ..scoring.reference import part_of
from .attachment import guided, not_differentiable
from .config import GuidanceConfig
from .guidance import Guidance
from .preparation import held_constant
from .refusals import check_one_device, check_rank, check_sampling, check_vae_fits
from .trace import Trace
from .usual import check_usual, guides_of, judges_of, target_of


def apply_guidance(
    model: Any,
    vae: Any,
    encoder: AnyEncoder,
    config: GuidanceConfig,
    *,
    judge: AnyEncoder | None = None,
    reference: Reference | None = None,
    chain: GradientChain | None = None,
    on_pass: Callable[[], None] = interrupt_check,
    report: Callable[[Trace], None] = lambda trace: None,
) -> Any:
    """Return a clone of MODEL that is guided in any sampler of the host.

    Args:
        model: MODEL. vae: the VAE for its latents. encoder: the guide, or a weighted set of guides.
        judge: scores every guided step for the trace, and measures how near the target is if the reference knows it.
        reference: what novelty and the target compare with.
        chain: replaces the whole gradient, for comparisons; encoder and VAE are still checked and loaded.
        on_pass: called after every encoder pass; may raise to stop.
        report: called with the trace after every step, and from time to time within guided steps.

    Raises:
        ValueError: models that do not fit together, that guidance does not support, or that are on several devices.
    """
    check_sampling(model)
    check_vae_fits(vae, model)
    check_one_device(model)
    guides = [member.encoder for member in encoder.members]
    judges = [member.encoder for member in judge.members] if judge else []
    reference = reference and reference.distinct
    check_usual(config, encoder, reference)
    if config.criterion != NOVELTY:
        check_rank(config.rarity.k, guides)
    loaded = patchers(*guides, *judges)
    decoder, small = _decoders(config, vae, model, guides)
    through, notices = config.through_denoiser, []
    if through and (why := not_differentiable(model, [decoder.vae.patcher, *loaded])):
        through = False
        notices.append(held_constant(why))
    own = LatentGradient(
        decoder,
        _image_gradient(config, encoder, judges, reference),
        Way(through, checkpointing=config.checkpointing),
        small=small,
        labels=([one.label for one in guides], [_judge_label(one, config, reference) for one in judges]),
    )
    guidance = Guidance(
        by=JEPA_GUIDANCE,
        schedule=config.schedule,
        one_call=config.one_call,
        chain=chain or own,
        vae=decoder.vae,
        encoders=[*guides, *judges],
        how=_description(config, through, decoder, guides, loaded),
        notices=notices,
        on_pass=on_pass,
        report=report,
    )
    return guided(model, guidance, [decoder.vae.patcher, *loaded], through)


def _image_gradient(
    config: GuidanceConfig,
    encoder: AnyEncoder,
    judges: Sequence[HostEncoder],
    reference: Reference | None,
) -> ImageGradient:
    return ImageGradient(
        guides_of(encoder, config, reference),
        config.rarity,
        judges_of(judges, config, reference),
        criterion=config.criterion,
        apart=config.apart,
        smooth=config.smooth,
        keep_appearance=config.keep_appearance,
        agree=config.agree,
        target=target_of(config, encoder, judges, reference),
        fit=config.fit,
        antialias=config.antialias,
    )


def _decoders(
    config: GuidanceConfig, vae: Any, model: Any, guides: Sequence[HostEncoder]
) -> tuple[LatentDecoder, LatentDecoder | None]:
    """The decoder, and the one to use when memory runs out."""
    latent_format = model.get_model_object("latent_format")
    image_size = max(guide.image_size for guide in guides)
    decoder = choose_decoder(config.decoder, vae, latent_format, image_size, config.fit)
    if config.decoder != FULL:
        return decoder, None
    return decoder, choose_decoder(ENCODER_RESOLUTION, decoder.vae, latent_format, image_size, config.fit)


def _judge_label(judge: HostEncoder, config: GuidanceConfig, reference: Reference | None) -> str:
    """How the trace names what a judge reports, see judges_of."""
    novelty = config.criterion == NOVELTY and reference is not None and part_of(reference, judge)
    return judge.label + NOVELTY_JUDGE if novelty else judge.label


def _description(
    config: GuidanceConfig,
    through_denoiser: bool,
    decoder: LatentDecoder,
    guides: Sequence[HostEncoder],
    loaded: Sequence[Any],
) -> str:
    """How the gradient is computed, as a line for users."""
    half = config.rarity.half and has_fast_bfloat16(loaded[0].load_device)
    range_finder = (TRACKED if config.rarity.tracked else COLD) + (" in half precision" if half else "")
    return ", ".join(
        [
            *([config.criterion] if config.criterion != SCORE else []),
            *(["apart"] if config.apart else []),
            THROUGH_DENOISER if through_denoiser else DENOISER_CONSTANT,
            decoder.description,
            "one call" if config.one_call else "two calls",
            *([range_finder] if config.criterion != NOVELTY else []),
            *(["smooth"] if config.smooth else []),
            *(["keep appearance"] if config.keep_appearance else []),
            *(["agree"] if config.agree else []),
            *([f"target 1 in {1 / config.target:.0f}"] if config.target else []),
            *(["checkpointing"] if config.checkpointing else []),
            *([f"strength counts {config.schedule.times:g} times"] if config.schedule.times != 1 else []),
            *([f"{len(guides)} guides"] if len(guides) > 1 else []),
        ]
    )
