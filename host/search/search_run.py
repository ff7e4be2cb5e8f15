"""The state of one sampler call that searches."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from ..comfy.required import KSAMPLER, interrupt_check
from ..comfy.sampling import time_left
from ..encoders.host_encoder import AnyEncoder
from ..gradient.residency import keep_whole, refuse_streamed
from ..guidance.guidance import Guidance
from ..guidance.guided_model import GuidedModel
from ..guidance.guided_run import GuidedRun
from ..guidance.refusals import check_finite, check_frames, check_schedule
from ..guidance.sampler_probe import StepCount, probe_sampler
from ..options import CONDITIONING_NOISE, FLOOR_PERCENTILE
from ..scoring.floor import above, check_any_above, floor_value
from ..variety.cads import Cads, with_noised_conditioning
from .appraisal import Appraiser
from .config import SearchConfig
from .record import Candidate, SearchRecord
from .rows_model import Change, RowsModel
from .selection import below_floor, choose, plan_looks
from .work import Work


@dataclass(frozen=True)
class Search:
    """What a MODEL is patched with. Runs read it; `record` is theirs to fill.

    Attributes:
        encoder: whose frames are checked before the run.
        guidance: guides the candidates that are left after the last look; None does not.
        report: called with the record after every step and look.
    """

    config: SearchConfig
    appraiser: Appraiser
    encoder: AnyEncoder
    guidance: Guidance | None
    record: SearchRecord
    report: Callable[[SearchRecord], None]


class SearchRun:
    """One sampler call.

    Attributes:
        left: rows of the candidates that are left, ascending.
        floor: the least quality; -inf for none.
        estimates: the clean estimates of the last model call, (B, ...).
        last: that call, from 0; None before. Of calls at the latent's shape alone, like estimates.
        guided: guides the candidates that are left after the last look; None before.
    """

    def __init__(self, search: Search, sampler: KSAMPLER, guider: Any) -> None:
        self.config, self.appraiser, self.record = search.config, search.appraiser, search.record
        self.encoder, self.report, self.guidance = search.encoder, search.report, search.guidance
        self.stock = sampler
        self.guider = guider
        self.base_model = guider.inner_model
        self.guided_run = GuidedRun(self.guidance, sampler, guider) if self.guidance else None
        self.guided: GuidedModel | None = None
        self.floor = -math.inf
        self.calls = 0
        self.last: int | None = None

    def forget(self) -> None:
        """Drop all state: a reference cycle would keep the model on the device after its last user is gone."""
        if self.guided_run:
            self.guided_run.forget()
        vars(self).clear()

    def prepare(self, needed: Sequence[Any]) -> None:
        """Load what this run calls outside of the denoiser, whole. needed: patchers of the encoders.

        Raises:
            ValueError: they do not fit on the device.
        """
        keep_whole(needed, [self.guider.model_patcher, *self.guider.loaded_models])
        for patcher in needed:
            refuse_streamed(patcher, "an encoder of the search")
        if self.guided_run:
            self.guided_run.prepare()

    def sampler(self) -> KSAMPLER:
        """The stock sampler with its function replaced by the searching one."""
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
        """Run the stock sampler function on a model that drops candidates."""
        check_frames(x, self.encoder)
        check_schedule(sigmas)
        check_finite(x)
        self.shape = x.shape
        self.plan = probe_sampler(self.stock, sigmas, options, model, x.shape)
        self._begin(model, x, sigmas, extra_args or {})

        count = StepCount(self.plan, self.stock)

        def after_step(state: dict) -> None:
            step = count.reported(self.last)
            if step is not None:
                self._after_step(step)
            if callback is not None:
                # the host shows the first image, and takes "i" for the share that is done
                shown = {name: state[name][self.order] for name in ("x", "denoised")}
                callback({**state, **shown, "i": self.work.step - 1})

        result = self.stock.sampler_function(
            _Searching(model, self.answer),
            x.clone(),  # guidance writes into it
            sigmas,
            extra_args=extra_args,
            callback=after_step,
            disable=disable,
            **options,
        )
        return self._end(result)

    def _begin(self, model: Any, x: Tensor, sigmas: Tensor, extra_args: dict) -> None:
        config, record = self.config, self.record
        # a copy, since samplers add their hooks to the original
        self.sigmas, self.extra_args = sigmas, dict(extra_args)
        self.rows = RowsModel(
            model,
            self.guider,
            len(x),
            options=extra_args.get("model_options", {}),
            at_once=config.rows_at_once,
            on_rows=self._after_rows,
        )
        looks = plan_looks(config.looks, self.plan.steps, len(x), config.count)
        self.looks = {look.step: look.left for look in looks}
        record.candidates = [Candidate(index) for index in range(len(x))]
        record.steps, record.looks = self.plan.steps, list(self.looks)
        if config.qualities:
            for one, quality in zip(record.candidates, config.qualities, strict=True):
                one.quality = quality
            self._set_floor(config.qualities)
            check_any_above(config.qualities, self.floor)
            for one, able in zip(record.candidates, above(config.qualities, self.floor), strict=True):
                one.dropped = "" if able else below_floor(one.quality, self.floor)
        self.work = Work(self.plan.steps, self.looks, len(record.left))
        self._go_on_with(record.left)

    # --- model calls ---------------------------------------------------------------------------------------------

    def answer(self, x: Tensor, sigma: Tensor, kwargs: dict) -> Tensor:
        """The clean estimates for a call of the sampler; in a step with a look, candidates are dropped after it."""
        step = self.plan.first.get(self.calls)
        change = self._change(sigma)
        if self.guided_run and not self.guided and self._searched(step):
            self._begin_guidance(self.guided_run, x, sigma, change)
        if self.guided_run and self.guided:
            estimates = self._guided(self.guided_run, self.guided, x, sigma, kwargs, change)
        else:
            estimates = self.rows.estimates(self.left, x, sigma, kwargs, change)
        if x.shape == self.shape:
            self.last, self.estimates = self.calls, estimates
        self.calls += 1
        self.record.calls += 1
        if step is not None and step in self.looks:
            self._look(step)
        return estimates

    def _searched(self, step: int | None) -> bool:
        """Whether this is the first call of a step after the last look."""
        return step is not None and step > max(self.looks, default=-1)

    def _begin_guidance(self, run: GuidedRun, x: Tensor, sigma: Tensor, change: Change | None) -> None:
        with self.rows.of(self.left, x, sigma, self.extra_args, change) as call:
            self.guided = run.begin(self.plan, call.model, call.x, self.sigmas, call.kwargs, self.calls)

    def _guided(
        self,
        run: GuidedRun,
        model: GuidedModel,
        x: Tensor,
        sigma: Tensor,
        kwargs: dict,
        change: Change | None,
    ) -> Tensor:
        with self.rows.of(self.left, x, sigma, kwargs, change) as call, run.counting_blocks():
            own = model(call.x, call.sigma, **call.kwargs)
        if call.x is not x:
            # the shift, if x is the sampler's own state
            x[self.left] = call.x
        estimates = x.clone()
        estimates[self.left] = own
        self._after_rows(len(self.left))
        return estimates

    def _change(self, sigma: Tensor) -> Change | None:
        """Adds this call's noise to the conditioning, if that is asked for."""
        if self.config.variety != CONDITIONING_NOISE:
            return None
        return partial(
            with_noised_conditioning,
            step=self.calls,
            t=time_left(self.base_model.model_sampling, sigma.flatten()[0]),
            settings=Cads(scale=self.config.noise_scale),
            seed=self.config.seed,
        )

    # --- looks -----------------------------------------------------------------------------------------------------

    def _look(self, step: int) -> None:
        """Drop the least wanted candidates by their clean estimates."""
        self._appraise(self.estimates, step)
        self._go_on_with(self._chosen(self.looks[step]))

    def _appraise(self, clean: Tensor, step: int) -> None:
        """Note how rare and how good the candidates are that are left."""
        found = self.appraiser(clean[self.left], self.base_model)
        for one, seen in zip(self.record.left, found, strict=True):
            one.value, one.picture, one.step = seen.value, seen.picture, step
            if self.appraiser.quality:
                one.quality = seen.quality

    def _chosen(self, count: int) -> list[Candidate]:
        """The candidates that stay, best first."""
        before = self.record.left
        broken = [one for one in before if not math.isfinite(one.value)]
        if len(broken) == len(before):
            raise ValueError(
                "every candidate holds NaN or infinite values; the model, the VAE or their precision is at fault"
            )
        if broken:
            names = ", ".join(str(one.index) for one in broken)
            self.record.notice(f"image(s) {names} hold NaN or infinite values and were dropped")
        qualities = [one.quality for one in before if one not in broken]
        if self.appraiser.quality and self.record.floor is None:
            self._set_floor(qualities)
        self._lower_floor(qualities)
        check_any_above(qualities, self.floor)
        return choose(before, count, self.floor, highest=self.config.highest)

    def _lower_floor(self, qualities: Sequence[float]) -> None:
        """Lower a percentile, which is that of the first look, to the best quality if all that are left fall short of it.

        The finished images may measure a little lower than their estimates did. A floor that the user typed stays.
        """
        known = [quality for quality in qualities if math.isfinite(quality)]
        if self.config.floor_kind != FLOOR_PERCENTILE or not known or any(above(known, self.floor)):
            return
        self.record.notice(
            f"nothing that is left reaches the first look's floor {self.floor:.3g}; lowered to the best, {max(known):.3g}"
        )
        self.floor = self.record.floor = max(known)

    def _set_floor(self, qualities: Sequence[float]) -> None:
        self.floor = floor_value(self.config.floor_kind, self.config.floor, qualities)
        self.record.floor = self.floor if math.isfinite(self.floor) else None

    def _go_on_with(self, stay: Sequence[Candidate]) -> None:
        """Continue with these candidates, best first."""
        self.order = [one.index for one in stay]
        self.left = sorted(self.order)
        self.report(self.record)

    # --- progress and reports --------------------------------------------------------------------------------------

    def _after_rows(self, count: int) -> None:
        """Count candidates that went through the denoiser; raises if the user interrupted the run."""
        self.record.rows += count
        interrupt_check()
        self.work.add(count)

    def _after_step(self, step: int) -> None:
        self.record.done = step + 1
        self.work.end_step(step)
        if self.guided_run and self.guided:
            self.guided_run.after_step(step)
        self.report(self.record)

    def _end(self, result: Tensor) -> Tensor:
        """Choose among the finished candidates."""
        last = self.sigmas[-1]
        if self.guided_run and self.guided:
            result[self.left] = self.guided_run.end(self.guided.result(result[self.left]), last)
        clean = self.estimates
        if last == 0:
            clean = self.base_model.model_sampling.inverse_noise_scaling(last, result)
        self.record.done = self.plan.steps
        self._appraise(clean, self.plan.steps)
        self.record.kept = self._chosen(self.config.count)
        if len(self.record.kept) < min(self.config.count, len(result)):
            self.record.notice(f"only {len(self.record.kept)} of {self.config.count} can be kept")
        self.report(self.record)
        return result


class _Searching:
    """The model that the sampler calls."""

    def __init__(self, model: Any, answer: Callable[[Tensor, Tensor, dict], Tensor]) -> None:
        self._model = model
        self._answer = answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, x: Tensor, sigma: Tensor, **kwargs: Any) -> Tensor:
        return self._answer(x, sigma, kwargs)
