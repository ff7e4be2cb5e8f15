"""One guided sampler call: the stock sampler, with a model that shifts the latent at each guided step."""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..comfy.memory import HostRoom, give_back, is_out_of_memory
from ..comfy.required import KSAMPLER
from ..encoders.host_encoder import patchers
from ..gradient.block_count import BlockCount
from ..gradient.checkpointing import blocks
from ..gradient.compiled import runs_compiled
from ..gradient.denoiser import differentiable_denoiser
from ..gradient.differentiable import differentiable_arguments
from ..gradient.estimate import dx0_dx
from ..gradient.gradient_check import DENOISER, WrongGradientError
from ..gradient.image_gradient import ScoreGradient
from ..gradient.random_state import random_state_kept
from .guidance import KEY, Guidance
from .guided_model import GuidedModel, SamplerPlan
from .memory_plan import PlannedMemory
from .model_calls import BatchDenoiser, HookListener, StepCalls, inpainting_mask, post_cfg_hooks
from .preparation import gradient_check, hold_constant, make_differentiable
from .progress import StepProgress
from .record import record_places, record_step
from .refusals import check_finite, check_frames, check_schedule
from .sampler_probe import StepCount, probe_sampler
from .schedule import latent_scale, posterior_variance, signal_rate
from .shift import shift_of
from .trace import Trace, UnguidedStep


class GuidedRun:
    """The state of one sampler call.

    Attributes:
        chain: belongs to this run; the memory plan sets its way.
        trace: what the run did so far.
        plan: how the sampler calls the model; from `begin` on, like `guided`.
        guided: the guided steps.
        memory: the way that the chain takes, by memory; from `begin` on.
    """

    def __init__(self, guidance: Guidance, sampler: Any, guider: Any) -> None:
        if not isinstance(sampler, KSAMPLER):
            raise ValueError(
                f"JEPA guidance does not support samplers of type {type(sampler).__name__}; use a stock one"
            )
        self.stock = sampler
        self.guider = guider
        self.base_model = guider.inner_model
        self.schedule, self.one_call = guidance.schedule, guidance.one_call
        self.encoders = guidance.encoders
        self.on_pass, self.report = guidance.on_pass, guidance.report
        self.trace = Trace(*guidance.chain.labels, how=guidance.how, measure=guidance.chain.measure)
        for notice in guidance.notices:
            self.trace.notice(notice)
        self.vae = guidance.vae
        self.check = gradient_check(guider, self.vae)
        self.chain = guidance.chain.begin_run(self.after_pass, self.check)
        self.blocks = BlockCount()

    def prepare(self) -> None:
        """Load what the run differentiates. Raises ValueError if the decoder or an encoder does not fit on the device."""
        make_differentiable(self.guider, self.vae, patchers(*self.encoders), self.chain, self.trace)

    def forget(self) -> None:
        """Drop all state: a reference cycle would keep the model on the device after its last user is gone."""
        vars(self).clear()

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
        """Run the stock sampler function on a model that shifts x at each guided step."""
        check_frames(x, *self.encoders)
        check_schedule(sigmas)
        check_finite(x)
        plan = probe_sampler(self.stock, sigmas, options, model, x.shape)
        guided_model = self.begin(plan, model, x, sigmas, extra_args or {})
        count = StepCount(plan, self.stock)

        def after_step(state: dict) -> None:
            step = count.reported(guided_model.last)
            if step is not None:
                self.after_step(step)
            if callback is not None:
                callback(state)

        with self.counting_blocks():
            # x is cloned, since guidance writes into it. sigmas is not: the host reads what samplers write into it.
            result = self.stock.sampler_function(
                guided_model,
                x.clone(),
                sigmas,
                extra_args=extra_args,
                callback=after_step,
                disable=disable,
                **options,
            )
        return self.end(guided_model.result(result), sigmas[-1])

    def begin(
        self, plan: SamplerPlan, model: Any, x: Tensor, sigmas: Tensor, extra_args: dict, call: int = 0
    ) -> GuidedModel:
        """Plan the guided steps, and return the model that guides them.

        Args:
            model, extra_args: as the host passes them to sampler functions.
            x: of the same shape as at every guided call.
            call: how many model calls there were before; no earlier step is guided.
        """
        self.plan = plan
        # before the sampler adds its own
        self.model_hooks = len(post_cfg_hooks(extra_args))
        past = [step for index, step in plan.first.items() if index < call]
        self.guided = [step for step in self.schedule.guided_steps(plan.steps) if step not in past]
        self.trace.total = plan.steps
        for step in past:
            self.trace.add(UnguidedStep(step, plan.sigmas[step]))
        self.progress = StepProgress(plan.steps, self.report_passes)
        if self.guided:
            for notice in self.chain.notices(len(x)):
                self.trace.notice(notice)
            self._plan_memory(model, x, sigmas[:1], extra_args)
        else:
            logging.warning("JEPA guidance: none of the %d steps lies in the guided range", plan.steps)
        return GuidedModel(model, plan, self.guided, self.guided_call, call)

    def end(self, result: Tensor, sigma: Tensor) -> Tensor:
        """Record where the finished images lie, and return the result. sigma: the last one of the schedule."""
        self.progress.end()
        if sigma == 0 and self.guided:
            clean = self.base_model.model_sampling.inverse_noise_scaling(sigma, result)
            record_places(self.trace, self.chain, clean, self.base_model)
            self.report(self.trace)
        return result

    # --- a guided step --------------------------------------------------------------------------------------------

    def guided_call(self, model: Any, x: Tensor, sigmas: Tensor, kwargs: dict, step: int) -> Tensor:
        """Shift x in place at the start of a guided step; return the clean estimate at the shifted x."""
        self.progress.begin(step)
        one_call = self.one_call
        # post-CFG hooks added by the sampler
        hooks = post_cfg_hooks(kwargs)[self.model_hooks :] if one_call else []
        listener = HookListener()
        calls = StepCalls(model, self.base_model.diffusion_model, kwargs, first_is_samplers=one_call)
        self.check.mask = mask = inpainting_mask(model, sigmas, kwargs)
        try:
            hooked = listener.added_to(kwargs) if hooks else kwargs
            found = self.gradient_at(calls, x, sigmas, hooked, listener)
            if mask is not None and not self.chain.way.through_denoiser:
                # the mask is applied on the way into the network and again on the way out
                found = found._replace(gradient=found.gradient * mask * mask)
            if one_call and found.clean is None:
                found = found._replace(clean=calls(x, sigmas, hooked))
            change = self.shift(x, sigmas.flatten()[0], found, step)
            if found.clean is None or not one_call:
                answer: Tensor = model(x, sigmas, **kwargs)
                return answer
            return self.carry_along(
                found.clean, x, sigmas.flatten()[0], change, mask, hooks, listener.received
            )
        finally:
            listener.forget()

    def carry_along(
        self,
        clean: Tensor,
        x: Tensor,
        sigma: Tensor,
        change: Tensor,
        mask: Tensor | None,
        hooks: Sequence[Callable[[dict], Tensor]],
        received: dict,
    ) -> Tensor:
        """The clean estimate at the shifted x, with the network's output held constant.

        Args:
            change: what was subtracted from x. mask: the denoiser's share of the estimate.
            hooks: post-CFG hooks added by the sampler, called again with the moved estimates; cfg++ samplers take the
                unconditional one from there.
            received: the arguments of such hooks at the x before the shift.
        """
        weight = 1.0 if mask is None else mask
        moved = weight * change * dx0_dx(self.base_model.model_sampling, sigma)
        for hook in hooks:
            estimates = ("denoised", "cond_denoised", "uncond_denoised")
            shifted = {name: received[name].detach() - moved.to(x) for name in estimates}
            hook({**received, "input": x, **shifted})
        return clean - (weight * moved).to(clean)

    def gradient_at(
        self, calls: StepCalls, x: Tensor, sigmas: Tensor, kwargs: dict, listener: HookListener
    ) -> ScoreGradient:
        """The gradient at x; cheaper if memory runs out, with the denoiser held constant if its gradient is wrong."""
        while True:
            try:
                with random_state_kept(x.device):  # some decoders draw noise
                    return self._gradient(calls, x, sigmas, kwargs)
            except WrongGradientError as error:
                if error.part != DENOISER or not self.chain.way.through_denoiser:
                    raise ValueError(
                        f"JEPA guidance cannot use this decoder: {error}. Set decoder to another option, or connect "
                        "another VAE."
                    ) from error
                hold_constant(self.chain, self.trace, str(error))
                self.memory.take_best()
            except Exception as error:
                if not (is_out_of_memory(error) and self.memory.take_next()):
                    raise
            # only after the except block is the failed attempt's memory free
            calls.undo()
            listener.forget()
            give_back()

    def _gradient(self, calls: StepCalls, x: Tensor, sigmas: Tensor, kwargs: dict) -> ScoreGradient:
        sigma = sigmas.flatten()[0]
        if not self.chain.way.through_denoiser:
            return self.chain(BatchDenoiser(calls, sigmas, kwargs, self.guider), x, sigma, self.base_model)
        with differentiable_denoiser(self.guider, KEY, checkpointing=self.chain.way.checkpointing):
            kwargs = differentiable_arguments(kwargs)
            denoise = BatchDenoiser(calls, sigmas.clone(), kwargs, self.guider, self.blocks.watched)
            return self.chain(denoise, x.clone(), sigma.clone(), self.base_model)

    def _plan_memory(self, model: Any, x: Tensor, sigma: Tensor, kwargs: dict) -> None:
        """Choose the way that fits, before the first step."""

        def call() -> None:
            calls = StepCalls(model, self.base_model.diffusion_model, kwargs, first_is_samplers=False)
            counted = differentiable_denoiser(self.guider, KEY, checkpointing=False)
            with random_state_kept(x.device), counted:
                calls(x.clone(), x.new_ones(len(x)) * sigma.to(x), differentiable_arguments(kwargs))

        self.memory = PlannedMemory(self.guider, self.chain, self.trace, x, call, HostRoom(self.guider))
        self.memory.take_best()

    def shift(self, x: Tensor, sigma: Tensor, found: ScoreGradient, step: int) -> Tensor:
        """Shift x in place and record it; returns what was subtracted."""
        schedule, sampling = self.schedule, self.base_model.model_sampling
        eta = schedule.step_strength(len(self.guided))
        if schedule.variance:
            following = torch.tensor(self.plan.sigmas[step + 1])
            eta *= posterior_variance(signal_rate(sampling, sigma), signal_rate(sampling, following))
        change = shift_of(found.gradient, eta, latent_scale(sampling, sigma), schedule.normalisation)
        if found.push is not None:
            change = change * found.push.to(change).reshape(-1, *[1] * (change.ndim - 1))
        x -= change.to(x)
        record_step(self.trace, step, float(sigma), found, change)
        return change

    # --- reports -------------------------------------------------------------------------------------------------

    def after_pass(self) -> None:
        """Count an encoder pass; raises if the user interrupted the run."""
        self.progress.passed()
        self.on_pass()

    def after_step(self, step: int) -> None:
        """Record an unguided step (guided ones are recorded when shifted), and report."""
        if len(self.trace.steps) <= step:
            self.trace.add(UnguidedStep(step, self.plan.sigmas[step]))
        self.trace.passes = None
        if self.guided:
            self.memory.after_step()
        self.report(self.trace)

    def report_passes(self, step: int, count: int) -> None:
        """Report the progress of a guided step."""
        self.trace.passes = (step, count)
        self.report(self.trace)

    def counting_blocks(self) -> AbstractContextManager:
        """Count the blocks of a differentiated denoiser. Not of a compiled one: hooks would make torch compile it again."""
        network = self.base_model.diffusion_model
        if not self.chain.way.through_denoiser or runs_compiled(network, self.guider.model_options):
            return nullcontext()
        return self.blocks.of(network, blocks(network))
