"""One guided sampler call: the stock sampler on a model that shifts the latent where a guided step begins."""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..comfy.memory import is_out_of_memory
from ..comfy.required import KSAMPLER, soft_empty_cache
from ..encoders.host_encoder import HostEncoder, patchers
from ..gradient.autograd import differentiable_options, normal_tensors
from ..gradient.block_count import BlockCount
from ..gradient.chain import GradientChain, ScoreGradient, dx0_dx
from ..gradient.check import DENOISER, WrongGradientError
from ..gradient.checkpointing import blocks
from ..gradient.compiled import runs_compiled
from ..gradient.denoiser import differentiable_denoiser
from ..gradient.random_state import random_state_kept
from .checks import check_finite, check_frames
from .config import GuidanceConfig
from .fallback import fall_back
from .guided_model import GuidedModel, SamplerPlan
from .model_calls import HookListener, StepCalls, inpainting_mask, post_cfg_hooks
from .preparation import gradient_check, hold_constant, make_differentiable
from .probe import probe_sampler
from .progress import StepProgress
from .samplers import sampler_name
from .schedule import latent_scale, posterior_variance, signal_rate
from .shift import is_finite, shift_of
from .trace import GuidedStep, Trace, UnguidedStep

KEY = "jepa_guidance"  # of this pack's wrappers, and of the models that it adds to a MODEL


@dataclass(frozen=True)
class Guidance:
    """What a MODEL is patched with; every run of it reads this, and changes nothing in it.

    Attributes:
        chain: gives the gradient; every run takes its own by begin_run.
        vae: decodes; its weights stay in place.
        encoders: guides and judges.
        how: how the gradient is computed, a line for people.
        notices: what is done differently than asked, before any run.
        on_pass: called after every encoder pass; may raise to stop.
        report: called with the trace after every step, and within guided steps from time to time.
    """

    config: GuidanceConfig
    chain: GradientChain
    vae: Any
    encoders: Sequence[HostEncoder]
    how: str
    notices: Sequence[str]
    on_pass: Callable[[], None]
    report: Callable[[Trace], None]


class GuidedRun:
    """State of one sampler call.

    Attributes:
        chain: of this run; what is given up when memory runs out is given up there.
        trace: what the run did so far.
        plan: which model calls begin the sampler's steps.
        guided: the steps that are guided.
    """

    def __init__(self, guidance: Guidance, sampler: Any, guider: Any) -> None:
        if not isinstance(sampler, KSAMPLER):
            raise ValueError(
                f"JEPA guidance does not know samplers of type {type(sampler).__name__}; use a stock one"
            )
        self.stock = sampler
        self.guider = guider
        self.base_model = guider.inner_model
        self.config = guidance.config
        self.encoders = guidance.encoders
        self.on_pass, self.report = guidance.on_pass, guidance.report
        self.trace = Trace(*guidance.chain.labels, how=guidance.how)
        for notice in guidance.notices:
            self.trace.notice(notice)
        self.check = gradient_check(guider, guidance.vae)
        self.chain = guidance.chain.begin_run(self.after_pass, self.check)
        self.blocks = BlockCount()

    def prepare(self, vae: Any) -> None:
        """Have whole what the run differentiates. Raises ValueError where that does not fit the device."""
        make_differentiable(self.guider, vae, patchers(*self.encoders), self.chain, self.trace)

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
        self._plan(probe_sampler(function, sigmas, options, model), len(post_cfg_hooks(extra_args or {})))
        guided_model = GuidedModel(model, self.plan, self.guided, self.guided_call)

        def after_step(state: dict) -> None:
            if self.plan.first.get(guided_model.calls - 1) != state["i"]:
                raise RuntimeError(
                    f"JEPA guidance: the sampler {sampler_name(function)!r} runs its steps in another order than in its "
                    "dry run, so they cannot be guided. Choose another sampler."
                )
            self.after_step(state["i"])
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

    def _plan(self, plan: SamplerPlan, model_hooks: int) -> None:
        """Take the sampler's plan; the model has so many post-CFG hooks before the sampler adds its own."""
        self.plan = plan
        self.model_hooks = model_hooks
        self.guided = self.config.schedule.guided_steps(plan.steps)
        self.trace.total = plan.steps
        self.progress = StepProgress(plan.steps, self.report_passes)
        if not self.guided:
            logging.warning("JEPA guidance: none of the %d steps lies in the guided range", plan.steps)

    # --- a guided step --------------------------------------------------------------------------------------------

    def guided_call(self, model: Any, x: Tensor, sigmas: Tensor, kwargs: dict, step: int) -> Tensor:
        """Shift x in place where a step begins; return the denoiser's clean estimate at the shifted x."""
        self.progress.begin(step)
        one_call = self.config.one_call
        hooks = post_cfg_hooks(kwargs)[self.model_hooks :] if one_call else []  # the sampler's own
        listener = HookListener()
        calls = StepCalls(model, self.base_model.diffusion_model, kwargs, first_is_samplers=one_call)
        self.check.mask = mask = inpainting_mask(model, sigmas, kwargs)
        heard = listener.added_to(kwargs) if hooks else kwargs
        found = self.gradient_at(calls, x, sigmas, heard, listener)
        if mask is not None and not self.chain.through_denoiser:
            # masked on the way into the network and once more on the way out
            found = found._replace(gradient=found.gradient * mask * mask)
        if one_call and found.clean is None:
            found = found._replace(clean=calls(x, sigmas, heard))
        change = self.shift(x, sigmas.flatten()[0], found, step)
        if found.clean is None or not one_call:
            answer: Tensor = model(x, sigmas, **kwargs)
            return answer
        return self.carry_along(found.clean, x, sigmas.flatten()[0], change, mask, hooks, listener)

    def carry_along(
        self,
        clean: Tensor,
        x: Tensor,
        sigma: Tensor,
        change: Tensor,
        mask: Tensor | None,
        hooks: Sequence[Callable[[dict], Tensor]],
        listener: HookListener,
    ) -> Tensor:
        """The clean estimate at the shifted x, with the network's output held constant.

        Args:
            change: what was subtracted from x. mask: the denoiser's share of the estimate.
            hooks: the sampler's own, which are told the moved estimates; cfg++ samplers take the unconditional one there.
            listener: what hooks were told of the estimate at the first x.
        """
        weight = 1.0 if mask is None else mask
        moved = weight * change * dx0_dx(self.base_model.model_sampling, sigma)
        for hook in hooks:
            told = listener.told
            estimates = ("denoised", "cond_denoised", "uncond_denoised")
            hook({**told, "input": x, **{name: told[name].detach() - moved.to(x) for name in estimates}})
        listener.forget()
        return clean - (weight * moved).to(clean)

    def gradient_at(
        self, calls: StepCalls, x: Tensor, sigmas: Tensor, kwargs: dict, listener: HookListener
    ) -> ScoreGradient:
        """The gradient at x, in a cheaper way when memory runs out, and without the denoiser's when that is wrong."""
        while True:
            try:
                with random_state_kept(x.device):  # some decoders draw noise
                    return self._gradient(calls, x, sigmas, kwargs)
            except WrongGradientError as error:
                if error.part != DENOISER or not self.chain.through_denoiser:
                    raise ValueError(
                        f"JEPA guidance cannot use this decoder: {error}. Set decoder to another choice, or connect "
                        "another VAE."
                    ) from error
                hold_constant(self.chain, self.trace, str(error))
            except Exception as error:
                done = fall_back(self.guider, self.chain) if is_out_of_memory(error) else None
                if done is None:
                    raise
                self.trace.notice(done)
            # only now does nothing hold what the failed attempt kept
            calls.undo()
            listener.forget()
            soft_empty_cache()

    def _gradient(self, calls: StepCalls, x: Tensor, sigmas: Tensor, kwargs: dict) -> ScoreGradient:
        if not self.chain.through_denoiser:
            return self.chain(lambda z: calls(z, sigmas, kwargs), x, sigmas.flatten()[0], self.base_model)
        with differentiable_denoiser(self.guider, KEY, checkpointing=self.chain.checkpointing):
            kwargs = normal_tensors(kwargs)
            kwargs["model_options"] = differentiable_options(kwargs.get("model_options", {}))
            sigmas, x = sigmas.clone(), x.clone()
            denoise = self.blocks.watched(lambda z: calls(z, sigmas, kwargs))
            return self.chain(denoise, x, sigmas.flatten()[0], self.base_model)

    def shift(self, x: Tensor, sigma: Tensor, found: ScoreGradient, step: int) -> Tensor:
        """Move x in place and record it; returns what was subtracted."""
        schedule, sampling = self.config.schedule, self.base_model.model_sampling
        eta = schedule.step_strength(len(self.guided))
        if schedule.variance:
            following = torch.tensor(self.plan.sigmas[step + 1])
            eta *= posterior_variance(signal_rate(sampling, sigma), signal_rate(sampling, following))
        change = shift_of(found.gradient, eta, latent_scale(sampling, sigma), schedule.normalisation)
        x -= change.to(x)
        finite = is_finite(found.gradient)
        if not finite.all():
            logging.warning(
                "JEPA guidance: step %d, image(s) %s not shifted, their gradient is not finite",
                step,
                (~finite).nonzero().flatten().tolist(),
            )
        self.trace.add(
            GuidedStep(
                step,
                float(sigma),
                found.score.tolist(),
                _by_label(self.trace.guides, found.each),
                _by_label(self.trace.judges, found.judged),
                found.gradient.flatten(1).norm(dim=1).tolist(),
                change.flatten(1).abs().amax(1).tolist(),
            )
        )
        return change

    # --- what is told --------------------------------------------------------------------------------------------

    def after_pass(self) -> None:
        """An encoder pass is done."""
        self.progress.passed()
        self.on_pass()

    def after_step(self, step: int) -> None:
        """The sampler has begun a step; guided ones were recorded when they were shifted."""
        if len(self.trace.steps) <= step:
            self.trace.add(UnguidedStep(step, self.plan.sigmas[step]))
        self.trace.passes = None
        self.report(self.trace)

    def report_passes(self, step: int, count: int) -> None:
        """Report how far a guided step is."""
        self.trace.passes = (step, count)
        self.report(self.trace)

    def counting_blocks(self) -> AbstractContextManager:
        """Count what the denoiser runs, where it is differentiated; hooks would have a compiled one compiled anew."""
        network = self.base_model.diffusion_model
        if not self.chain.through_denoiser or runs_compiled(network, self.guider.model_options):
            return nullcontext()
        return self.blocks.of(network, blocks(network))


def _by_label(labels: Sequence[str], scores: Tensor | None) -> dict[str, list[float]]:
    # no labels where the gradient is not a score's, whatever that tells of itself
    return {} if scores is None or not labels else dict(zip(labels, scores.tolist(), strict=True))
