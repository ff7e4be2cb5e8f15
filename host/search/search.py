"""Search as a MODEL patch: the next sampler call of the patched MODEL searches."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ...jepa_core import Reference
from ..comfy.memory import room_beside
from ..comfy.sampling import go_on_with, wrap_preparation, wrap_sampler, wrapped_sampler
from ..encoders.host_encoder import AnyEncoder, patchers
from ..gradient.decoders import choose_decoder
from ..guidance.attachment import guidance_of
from ..guidance.guidance import KEY
from ..guidance.refusals import check_one_device, check_sampling, check_vae_fits
from ..options import BOOSTED_START, CONDITIONING_NOISE, ENCODER_RESOLUTION, NOVELTY
from ..scoring.prompt_fit import PromptScorer, prompt_fits_here
from ..scoring.reference import check_comparable, seen_as
from ..variety.boost import boosted_start, skipped
from ..variety.cads import can_carry_noise
from .appraisal import Appraiser
from .config import SearchConfig
from .record import SearchRecord
from .rows_model import rows_that_fit
from .search_run import Search, SearchRun


def apply_search(
    model: Any,
    vae: Any,
    encoder: AnyEncoder,
    config: SearchConfig,
    *,
    reference: Reference | None = None,
    prompt_fit: PromptScorer | None = None,
    report: Callable[[SearchRecord], None] = lambda record: None,
) -> tuple[Any, SearchRecord]:
    """Return a clone of MODEL whose sampler searches among its batch, and the record that the run fills.

    The sampler returns the whole batch; only the rows in `record.kept` are pictures. If MODEL is guided, only the
    candidates that are left after the last look are.

    Args:
        model: MODEL. vae: the VAE for its latents. encoder: defines rarity.
        reference: what novelty compares with.
        prompt_fit: measures the candidates' quality.
        report: called with the record after every step and look.

    Raises:
        ValueError: models that do not fit together, or settings that lack what they need.
    """
    check_sampling(model)
    check_vae_fits(vae, model)
    check_one_device(model)
    if config.by == NOVELTY:
        if reference is None:
            raise ValueError("reference is needed to search by novelty; connect one, from JEPA Reference")
        check_comparable(reference, encoder, seen_as(config.fit, config.antialias))
    image_size = max(member.encoder.image_size for member in encoder.members)
    latent_format = model.get_model_object("latent_format")
    decoder = choose_decoder(ENCODER_RESOLUTION, vae, latent_format, image_size, config.fit)
    quality = (lambda images: prompt_fits_here(images, prompt_fit)) if prompt_fit else None
    appraiser = Appraiser(decoder, encoder, config.by, reference, quality, config.fit, config.antialias)
    record = SearchRecord(config.by, config.keep)
    guidance = guidance_of(model)
    if guidance is not None:
        record.notice(
            f"{guidance.by}, which the model brought, guides those that are left after the last look"
        )
    search = Search(config, appraiser, encoder, guidance, record, report)
    # the host's VAE may be streamed; other networks cannot
    needed = [*patchers(encoder), *([prompt_fit.patcher] if prompt_fit else [])]
    patched = model.clone()
    attached = [*patched.get_additional_models_with_key(KEY), decoder.vae.patcher, *needed]
    patched.set_additional_models(KEY, list({id(one): one for one in attached}.values()))
    # in place of the guidance's own wrapper; the one around its runs stays
    wrap_sampler(patched, KEY, lambda executor, *args: _sample(search, needed, executor, *args))
    wrap_preparation(
        patched,
        KEY,
        lambda executor, *args, **more: _prepare(
            config, [decoder.vae.patcher, *needed], executor, *args, **more
        ),
    )
    return patched, record


def _prepare(
    config: SearchConfig,
    loaded: list[Any],
    executor: Any,
    model: Any,
    shape: Sequence[int],
    *args: Any,
    **more: Any,
) -> Any:
    """Have the host leave room for as many rows as go through the denoiser at a time, instead of for all of them.

    Otherwise it would keep weights in system memory although there is room for them.
    """
    rows = config.rows_at_once or rows_that_fit(model.model, shape, room_beside([model, *loaded]))
    return executor(model, [min(rows, shape[0]), *shape[1:]], *args, **more)


def _sample(
    search: Search,
    needed: list[Any],
    executor: Any,
    guider: Any,
    sigmas: Tensor,
    extra_args: dict,
    callback: Any,
    noise: Tensor,
    latent: Tensor,
    mask: Tensor | None,
    *args: Any,
) -> Tensor:
    """A sampler call that searches."""
    check_one_device(guider.model_patcher)
    config = search.config
    if config.variety == CONDITIONING_NOISE and not can_carry_noise(guider.conds):
        raise ValueError(
            f"variety {CONDITIONING_NOISE!r} finds nothing in this model's conditioning that can carry noise; choose another"
        )
    if config.variety == BOOSTED_START:
        skip = skipped(len(sigmas) - 1)
        sampling = guider.inner_model.model_sampling
        noise, sigmas = boosted_start(sampling, sigmas, noise, config.boost, skip, mask)
    run = SearchRun(search, wrapped_sampler(executor), guider)
    try:
        run.prepare(needed)
        return go_on_with(executor, run.sampler())(
            guider, sigmas, extra_args, callback, noise, latent, mask, *args
        )
    finally:
        run.forget()
