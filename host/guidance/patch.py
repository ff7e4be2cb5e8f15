"""JEPA guidance as a MODEL patch: any stock sampler, guided (arXiv 2605.24631, algorithm 1)."""

import copy
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor

from ...jepa_core import RarityGradient, has_fast_bfloat16
from ..comfy.autograd import torch_attention
from ..comfy.memory import is_out_of_memory, unload_idle
from ..comfy.models import (
    casts_weights_by_hand,
    compute_dtype,
    models_in_patches,
    patches_of,
    replaced_model_options,
)
from ..comfy.required import KSAMPLER, load_models_gpu, soft_empty_cache
from ..comfy.sampling import (
    denoising_modules,
    go_on_with,
    has_weight_hooks,
    replaced_conditioning,
    wrap_run,
    wrap_sampler,
    wrapped_sampler,
)
from ..comfy.streaming import is_dynamic
from ..encoders.host_encoder import AnyEncoder, patchers
from ..gradient.autograd import differentiable_options, host_differentiable, normal_tensors
from ..gradient.block_count import BlockCount
from ..gradient.chain import Guide, LatentGradient, Slope, held_constant_slope
from ..gradient.check import DECODER, DENOISER, GradientCheck, WrongGradientError, kinds
from ..gradient.checkpointing import blocks, checkpointed
from ..gradient.compiled import runs_compiled, uncompiled
from ..gradient.decoders import ENCODER_RESOLUTION, FULL, choose_decoder
from ..gradient.random_state import random_state_kept
from ..gradient.residency import (
    ResidentParts,
    bound_to_streamed,
    fits_whole,
    keep_whole,
    refuse_streamed,
    resident,
)
from .checks import check_finite, check_frames, check_one_device, check_sampling, check_vae_fits
from .fallback import economise
from .guided_model import GuidedModel
from .patch_state import PatchState
from .probe import rehearse
from .progress import StepProgress
from .samplers import sampler_name
from .schedule import Schedule, latent_scale, normalise, posterior_variance, signal_rate
from .trace import Trace

KEY = "jepa_guidance"
# what torch says of tensors that others keep from their own calls, and of operations without a backward
NOT_DIFFERENTIABLE = (
    *("nference tensor", "does not require grad", "no autograd formula"),
    "backward through the graph a second time",
)
NO_DERIVATIVE = (
    "something patched onto the denoiser, or run beside it, has no derivative (a cache such as EasyCache, a "
    "second model, a LoRA in bypass mode)"
)
TWO_CALLS = "two"
ONE_CALL = "one"

# (denoise, x, sigma, base model) -> Slope, see LatentGradient.__call__
GradientFunction = Callable[[Callable[[Tensor], Tensor], Tensor, Tensor, Any], Slope]


def apply_guidance(
    model: Any,
    vae: Any,
    encoder: AnyEncoder,
    schedule: Schedule,
    rarity: RarityGradient,
    *,
    through_denoiser: bool = False,
    decoder: str = FULL,
    denoiser_calls: str = TWO_CALLS,
    checkpointing: bool = False,
    fit: str = "squash",
    antialias: bool = True,
    judge: AnyEncoder | None = None,
    gradient: GradientFunction | None = None,
    report: Callable[[Trace], None] = lambda trace: None,
) -> Any:
    """Return a clone of MODEL that any sampler of the host runs with guidance.

    Args:
        model: MODEL. vae: the VAE that decodes it. encoder: the guide, or a weighted set of guides.
        rarity: gradient of the guided score; its on_pass is used for interrupts, and called after every encoder pass.
        through_denoiser: see LatentGradient.
        decoder: how the clean latent becomes an image, see decoders.choose_decoder.
        denoiser_calls: "two" evaluates the denoiser again at the shifted latent (the paper); "one" continues the
            first answer along the shift with the network's output held constant.
        checkpointing: keep less of the decoder, and of the denoiser where it is differentiated, for the backward
            pass and compute it again: less memory, more time, the same gradient.
        judge: scores every guided step for the trace, and changes nothing else.
        gradient: replaces the whole chain, for comparisons; the encoder and VAE are then not used.
        report: called with the trace after every step.

    Raises:
        ValueError: models that do not fit each other, or that cannot be differentiated as loaded.
    """
    check_sampling(model)
    check_vae_fits(vae, model)
    check_one_device(model)
    guides = [member.encoder for member in encoder.members]
    judges = [member.encoder for member in judge.members] if judge else []
    for guide in guides:
        if rarity.k > guide.encoder.embed_dim:
            raise ValueError(
                f"rank {rarity.k} is larger than the embedding of {guide.name}, {guide.encoder.embed_dim}; lower it"
            )
    loaded = patchers(*guides, *judges)
    latent_format = model.get_model_object("latent_format")
    image_size = max(guide.image_size for guide in guides)
    latent_decoder = choose_decoder(decoder, vae, latent_format, image_size, fit)
    vae = latent_decoder.vae
    small = None  # what to decode with when memory runs out
    if decoder == FULL:
        small = choose_decoder(ENCODER_RESOLUTION, vae, latent_format, image_size, fit).prepare
    notices = []
    if through_denoiser:
        fits = fits_whole(model, vae.patcher, *loaded)
        why = bound_to_streamed(model) if fits else "the denoiser does not fit this device whole"
        if why:
            through_denoiser = False
            notices.append(held_constant(why))
    half = rarity.half and has_fast_bfloat16(loaded[0].load_device)
    how = ", ".join(
        [
            "through denoiser" if through_denoiser else "denoiser constant",
            latent_decoder.description,
            f"{denoiser_calls} call" + ("s" if denoiser_calls == TWO_CALLS else ""),
            ("tracked" if rarity.tracked else "cold") + (" in half precision" if half else ""),
            *(["checkpointing"] if checkpointing else []),
            *([f"{len(guides)} guides"] if len(guides) > 1 else []),
        ]
    )
    chain = gradient or LatentGradient(
        vae,
        [Guide(member.encoder.encoder, member.weight) for member in encoder.members],
        rarity,
        judges=[one.encoder for one in judges],
        through_denoiser=through_denoiser,
        fit=fit,
        antialias=antialias,
        checkpointing=checkpointing,
        prepare=latent_decoder.prepare,
    )
    # a caller's own gradient has neither
    guide_labels, judge_labels = (
        [one.label for one in ones if gradient is None] for ones in (guides, judges)
    )
    patched = resident(model) if through_denoiser and is_dynamic(model) else model.clone()
    patched.set_additional_models(KEY, [vae.patcher, *loaded])

    def run_with_resident_parts(executor: Any, *args: Any, **more: Any) -> Any:
        if not through_denoiser:
            return executor(*args, **more)
        # ControlNets and the like, which come with the conditioning or with patches of nodes behind this one
        guider, copies = executor.class_obj, ResidentParts()
        guider.conds, guider.model_options = copies(guider.conds), copies(guider.model_options)
        with replaced_model_options(guider.model_patcher, copies(guider.model_patcher.model_options)):
            return executor(*args, **more)

    def sample_guided(executor: Any, guider: Any, sigmas: Tensor, extra_args: dict, *args: Any) -> Tensor:
        check_one_device(guider.model_patcher)  # once more: a node behind this one may have changed it
        trace = Trace(guide_labels, judge_labels, how=how)
        for notice in notices:
            trace.notice(notice)
        # what the gradient tracks from step to step belongs to one run, however the last one ended
        rarity.reset()
        own = chain
        if isinstance(chain, LatentGradient):
            # copies, since a run that is short of memory changes them
            own = copy.copy(chain)
            own.rarity = copy.copy(rarity)
        run = _GuidedRun(
            wrapped_sampler(executor),
            guider,
            schedule,
            own,
            trace,
            report,
            small,
            encoders=[*guides, *judges],
            through_denoiser=through_denoiser,
            one_call=denoiser_calls == ONE_CALL,
            checkpointing=checkpointing,
        )
        try:
            run.make_differentiable(vae, loaded)
            return go_on_with(executor, run.sampler())(guider, sigmas, extra_args, *args)
        finally:
            # its parts refer to it: a circle would keep the model on the device after its last user has gone
            vars(run).clear()

    wrap_sampler(patched, KEY, sample_guided)
    wrap_run(patched, KEY, run_with_resident_parts)
    return patched


def held_constant(why: str) -> str:
    """What to tell a user whose denoiser is not differentiated as asked."""
    return f"{why}: denoiser constant (another image than through the denoiser)"


class _GuidedRun:
    """State of one sampler call."""

    def __init__(
        self,
        sampler: Any,
        guider: Any,
        schedule: Schedule,
        gradient: GradientFunction,
        trace: Trace,
        report: Callable[[Trace], None],
        small: Callable[[Tensor], Tensor] | None,
        *,
        encoders: Sequence[AnyEncoder],
        through_denoiser: bool,
        one_call: bool,
        checkpointing: bool,
    ) -> None:
        if not isinstance(sampler, KSAMPLER):
            raise ValueError(
                f"JEPA guidance does not know samplers of type {type(sampler).__name__}; use a stock one"
            )
        self.stock = sampler
        self.guider = guider
        self.base_model = guider.inner_model
        self.schedule = schedule
        self.gradient = gradient
        self.small = small
        self.encoders = encoders
        self.through_denoiser = through_denoiser
        self.one_call = one_call
        self.checkpointing = checkpointing
        self.report = report
        self.trace = trace
        self.guided: list[int] = []
        self.sigmas: list[float] = []
        self.hooks = 0
        self.blocks = BlockCount()
        if isinstance(gradient, LatentGradient):  # this run's own copy
            then = gradient.rarity.on_pass
            gradient.rarity.on_pass = lambda: self.after_pass(then)

    def make_differentiable(self, vae: Any, encoders: Sequence[Any]) -> None:
        """Have whole what this run differentiates, and give up differentiating the denoiser where that cannot be.

        Args:
            encoders: their patchers.

        Raises:
            ValueError: the decoder or an encoder does not fit the device whole.
        """
        guider, needed = self.guider, [vae.patcher, *encoders]
        beside = [guider.model_patcher, *guider.loaded_models]
        if self.through_denoiser and has_weight_hooks(guider):
            self.hold_constant("a LoRA that comes with the conditioning changes the denoiser within a step")
        patches = models_in_patches(guider.model_patcher)
        if self.through_denoiser and any(map(is_dynamic, patches)):
            self.hold_constant("a patch of another node brings a model that the host streams")
        if self.through_denoiser:
            # what else is streamed takes no part that anyone could know of; the check of the gradient would find it
            parts = [part for part in (*guider.loaded_models, *patches) if not is_dynamic(part)]
            streamed = keep_whole([*needed, guider.model_patcher, *parts], beside)
            if streamed:
                alone = all(patcher.model is guider.model_patcher.model for patcher in streamed)
                what = "the denoiser does" if alone else "the denoiser and what runs beside it do"
                self.hold_constant(f"{what} not fit this device whole")
                load_models_gpu(beside)
        keep_whole(needed, beside)
        refuse_streamed(vae.patcher, "the VAE")
        for patcher in encoders:
            refuse_streamed(patcher, "the JEPA encoder")
        if isinstance(self.gradient, LatentGradient):
            model = guider.model_patcher
            weights, others = patches_of(model)
            key = (weights, *map(kinds, (others, guider.conds, guider.model_options)))
            self.gradient.check = GradientCheck(
                {
                    DENOISER: (self.base_model, key, compute_dtype(self.base_model)),
                    DECODER: (vae.first_stage_model, None, vae.vae_dtype),
                }
            )

    def hold_constant(self, why: str) -> None:
        """Go on with the denoiser's output held constant."""
        self.through_denoiser = False
        if isinstance(self.gradient, LatentGradient):
            self.gradient.through_denoiser = False
        self.trace.notice(held_constant(why))

    def sampler(self) -> KSAMPLER:
        """The stock sampler with its function replaced by the guided one."""
        return KSAMPLER(self.sample, self.stock.extra_options, self.stock.inpaint_options)

    def sample(
        self,
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        extra_args: Any = None,
        callback: Any = None,
        disable: Any = None,
        **options: Any,
    ) -> Tensor:
        """Run the stock sampler function on a model that shifts x where a guided step begins."""
        check_frames(x, *self.encoders)
        check_finite(x)
        function = self.stock.sampler_function
        rehearsal = rehearse(function, sigmas, options, model)
        self.guided = self.schedule.guided_steps(rehearsal.steps)
        self.sigmas = rehearsal.sigmas
        self.trace.total = rehearsal.steps
        self.progress = StepProgress(rehearsal.steps, self.report_passes)
        self.hooks = len(post_cfg_hooks(extra_args or {}))
        if not self.guided:
            logging.warning("JEPA guidance: none of the %d steps lies in the guided range", rehearsal.steps)
        guided_model = GuidedModel(model, rehearsal, self.guided, self.guided_call)

        def after_step(state: dict) -> None:
            step = state["i"]
            if rehearsal.first.get(guided_model.calls - 1) != step:
                raise RuntimeError(
                    f"JEPA guidance: the sampler {sampler_name(function)!r} runs in another order than in its dry run, "
                    "so its steps cannot be guided. Choose another sampler."
                )
            # guided steps were recorded when they were shifted
            if len(self.trace.steps) <= step:
                self.trace.steps.append({"step": step, "sigma": rehearsal.sigmas[step], "guided": False})
            self.trace.summarise()
            self.report(self.trace)
            if callback is not None:
                callback(state)

        with self.counting_blocks():
            # A clone, since guidance writes into it. Samplers may write into sigmas, which the host then looks at.
            result = function(
                guided_model,
                x.clone(),
                sigmas,
                extra_args=extra_args,
                callback=after_step,
                disable=disable,
                **options,
            )
        return guided_model.result(result)

    def counting_blocks(self) -> AbstractContextManager:
        """Count what the denoiser runs, where it is differentiated; hooks would have a compiled one compiled anew."""
        network = self.base_model.diffusion_model
        if not self.through_denoiser or runs_compiled(network, self.guider.model_options):
            return nullcontext()
        return self.blocks.of(network, blocks(network))

    def after_pass(self, then: Callable[[], None] | None) -> None:
        """An encoder pass is done; `then` may raise to stop."""
        self.progress.passed()
        if then is not None:
            then()

    def report_passes(self, step: int, count: int) -> None:
        """Report how far a guided step is."""
        self.trace.summarise()
        self.trace.message += f"\nstep {step + 1} of {self.trace.total}: {count} guidance passes done"
        self.report(self.trace)

    def guided_call(self, model: Any, x: Tensor, sigmas: Tensor, kwargs: dict, step: int) -> Tensor:
        """Shift x in place where a step begins; return the denoiser's clean estimate at the shifted x."""
        self.progress.begin(step)
        # what the sampler itself hung on, beside the hooks of the model
        own = post_cfg_hooks(kwargs)[self.hooks :] if self.one_call else []
        heard: list[dict] = []
        estimates: list[Tensor] = []

        before = self.patch_state(kwargs)
        mask = inpainting_mask(model, sigmas, kwargs)
        if isinstance(self.gradient, LatentGradient) and self.gradient.check:
            self.gradient.check.mask = mask

        def call(z: Tensor, sigmas: Tensor, kwargs: dict) -> Tensor:
            # the sampler's own call of this step is the one that patches may remember
            asked_for = self.one_call and not estimates
            state = None if asked_for else self.patch_state(kwargs)
            answer = model(z, sigmas, **kwargs)
            if state:
                state.put_back()
            estimates.append(answer.detach())  # the list must not keep the denoiser's graph
            return answer

        listening = with_listener(kwargs, heard) if own else kwargs
        tracked = self.gradient.rarity.snapshot() if isinstance(self.gradient, LatentGradient) else {}
        while True:
            try:
                # some decoders draw noise
                with random_state_kept(x.device):
                    slope = self._slope(call, x, sigmas, listening)
                break
            except WrongGradientError as error:
                if error.part != DENOISER or not isinstance(self.gradient, LatentGradient):
                    raise ValueError(
                        f"JEPA guidance cannot use this decoder: {error}. Set decoder to another choice, or connect "
                        "another VAE."
                    ) from error
                self.hold_constant(str(error))
            except Exception as error:
                if not is_out_of_memory(error) or not self._economise():
                    raise
            # only now does nothing hold what the failed attempt kept
            if isinstance(self.gradient, LatentGradient):
                self.gradient.rarity.restore(tracked)
            before.put_back()
            estimates.clear()
            heard.clear()
            soft_empty_cache()
        if mask is not None and not self.through_denoiser:
            # masked on the way into the network and once more on the way out
            slope = slope._replace(gradient=slope.gradient * mask * mask)
        # the first estimate is at x; a gradient of the caller's own may need none
        estimate = (estimates or [call(x, sigmas, listening)])[0] if self.one_call else None
        estimates.clear()
        change = self.shift(x, sigmas.flatten()[0], slope, step)
        if estimate is None:
            return model(x, sigmas, **kwargs)
        weight = 1.0 if mask is None else mask
        moved = weight * change * held_constant_slope(self.base_model.model_sampling, sigmas.flatten()[0])
        # cfg++ samplers take the unconditional estimate from a hook; it has moved as well
        for hook in own:
            (args,) = heard
            names = ("denoised", "cond_denoised", "uncond_denoised")
            hook({**args, "input": x, **{name: args[name].detach() - moved.to(x) for name in names}})
        heard.clear()  # it holds the options, which hold the listener, which holds it
        return estimate - (weight * moved).to(estimate)

    def patch_state(self, kwargs: dict) -> PatchState:
        return PatchState(kwargs.get("model_options", {}), self.base_model.diffusion_model)

    def shift(self, x: Tensor, sigma: Tensor, slope: Slope, step: int) -> Tensor:
        """Move x in place down the gradient: z_t <- z_t - eta * g / max|g|, in x's own scale.

        Returns:
            What was subtracted from x, zero for images whose gradient is not finite.
        """
        gradient = slope.gradient
        finite = gradient.flatten(1).isfinite().all(1)
        norm = gradient.flatten(1).norm(dim=1)
        scale = latent_scale(self.base_model.model_sampling, sigma)
        # from per unit of x to per unit of z_t = x / scale
        direction = normalise(
            torch.where(finite.reshape(-1, *[1] * (x.ndim - 1)), gradient * scale, 0.0),
            self.schedule.normalisation,
        )
        eta = self.schedule.step_strength(len(self.guided))
        if self.schedule.variance:
            eta *= self._posterior_variance(sigma, step)
        change = (eta * scale) * direction
        x -= change.to(x)
        if not finite.all():
            logging.warning(
                "JEPA guidance: step %d, image(s) %s not shifted, their gradient is not finite",
                step,
                (~finite).nonzero().flatten().tolist(),
            )
        self.trace.guided_step(step, float(sigma), slope, norm, change.flatten(1).abs().amax(1))
        return change

    def _economise(self) -> bool:
        """Go on in a way that needs less memory, and say so; False when there is none."""
        chain = self.gradient
        if not isinstance(chain, LatentGradient):
            return False
        if idle := unload_idle(self.guider):
            self.trace.notice(
                f"out of memory: unloaded {idle} model(s) that this run does not need (the same image)"
            )
            return True
        done = economise(chain, self.small)
        if done is None:
            logging.error(
                "JEPA guidance: out of memory, and nothing cheaper is left. Use a smaller image or encoder, or fewer "
                "models in the graph."
            )
            return False
        self.trace.notice(done)
        self.through_denoiser, self.checkpointing = chain.through_denoiser, chain.checkpointing
        return True

    def _posterior_variance(self, sigma: Tensor, step: int) -> float:
        sampling = self.base_model.model_sampling
        following = torch.tensor(self.sigmas[step + 1])
        return posterior_variance(signal_rate(sampling, sigma), signal_rate(sampling, following))

    def _slope(
        self, call: Callable[[Tensor, Tensor, dict], Tensor], x: Tensor, sigmas: Tensor, kwargs: dict
    ) -> Slope:
        sigma = sigmas.flatten()[0]
        if not self.through_denoiser:
            return self.gradient(lambda z: call(z, sigmas, kwargs), x, sigma, self.base_model)
        modules = denoising_modules(self.guider, KEY)
        self.blocks.begin_step()
        with ExitStack() as stack:
            for context in (
                uncompiled(*modules),
                host_differentiable(*modules),
                torch_attention(),
                replaced_conditioning(self.guider, normal_tensors),
            ):
                stack.enter_context(context)
            # autograd would keep a copy of every weight that is cast where it is used
            if self.checkpointing or casts_weights_by_hand(self.base_model):
                stack.enter_context(checkpointed(*modules))
            kwargs = normal_tensors(kwargs)
            kwargs["model_options"] = differentiable_options(kwargs.get("model_options", {}))
            sigmas, x = sigmas.clone(), x.clone()
            try:
                slope = self.gradient(
                    lambda z: call(z, sigmas, kwargs), x, sigmas.flatten()[0], self.base_model
                )
            except RuntimeError as error:
                if not any(words in str(error) for words in NOT_DIFFERENTIABLE):
                    raise
                logging.info("JEPA guidance: torch cannot differentiate the denoiser: %s", error)
                raise WrongGradientError(DENOISER, NO_DERIVATIVE) from error
        fault = self.blocks.fault()
        if fault and isinstance(self.gradient, LatentGradient):
            raise WrongGradientError(DENOISER, fault)
        return slope


def post_cfg_hooks(kwargs: dict) -> list[Callable[[dict], Tensor]]:
    """The hooks that see a model call's clean estimates, in the order they run."""
    return kwargs.get("model_options", {}).get("sampler_post_cfg_function", [])


def with_listener(kwargs: dict, heard: list[dict]) -> dict:
    """The arguments of a model call, with one more hook that notes what the others were told at the first call."""

    def listen(args: dict) -> Tensor:
        if not heard:  # the first call is the one at x
            heard.append(args)
        return args["denoised"]

    options = {**kwargs["model_options"], "sampler_post_cfg_function": [*post_cfg_hooks(kwargs), listen]}
    return {**kwargs, "model_options": options}


def inpainting_mask(model: Any, sigmas: Tensor, kwargs: dict) -> Tensor | None:
    """What share of the clean estimate this call leaves to the denoiser, or None when it is all of it."""
    mask = kwargs.get("denoise_mask")
    change_mask = kwargs.get("model_options", {}).get("denoise_mask_function")
    if mask is None or change_mask is None:
        return mask
    return change_mask(sigmas, mask, extra_options={"model": model.inner_model, "sigmas": model.sigmas})
