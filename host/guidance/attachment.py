"""Attaching guidance to a MODEL: the wrappers of its samplers and runs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..comfy.models import replaced_model_options
from ..comfy.sampling import go_on_with, sampler_wrapper, wrap_run, wrap_sampler, wrapped_sampler
from ..comfy.streaming import is_dynamic
from ..gradient.residency import ResidentParts, bound_to_streamed, fits_whole, resident
from .guidance import KEY, Guidance
from .guided_run import GuidedRun
from .preparation import TOO_LARGE_TOGETHER
from .refusals import check_one_device


def guided(model: Any, guidance: Guidance, loaded: Sequence[Any], through: bool) -> Any:
    """Return a clone of MODEL that is guided in any sampler of the host, in place of an earlier guidance, with a notice.

    Args:
        loaded: patchers of the models that are loaded together with it.
        through: whether the denoiser is differentiated.
    """
    if (before := guidance_of(model)) is not None:
        guidance = replace(
            guidance, notices=[*guidance.notices, f"replaces {before.by}, which the model brought"]
        )
    patched = resident(model) if through and is_dynamic(model) else model.clone()
    patched.set_additional_models(KEY, list(loaded))
    wrap_sampler(patched, KEY, GuidedSampler(guidance))
    wrap_run(patched, KEY, run_with_resident_parts if through else _run)
    return patched


def not_differentiable(model: Any, others: Sequence[Any]) -> str | None:
    """Why the denoiser cannot be differentiated, or None. Copies nothing.

    Args:
        others: patchers of the models that must be on the device together with it.
    """
    if not fits_whole(model, *others):
        return TOO_LARGE_TOGETHER
    return bound_to_streamed(model)


def _run(executor: Any, *args: Any, **more: Any) -> Any:
    """A plain run. As a wrapper it replaces the one of an earlier guidance of the same MODEL."""
    return executor(*args, **more)


def run_with_resident_parts(executor: Any, *args: Any, **more: Any) -> Any:
    """A run in which ControlNets and the like, from the conditioning or later nodes, keep their weights in place."""
    guider, copies = executor.class_obj, ResidentParts()
    guider.conds, guider.model_options = copies(guider.conds), copies(guider.model_options)
    with replaced_model_options(guider.model_patcher, copies(guider.model_patcher.model_options)):
        return executor(*args, **more)


@dataclass(frozen=True)
class GuidedSampler:
    """The wrapper of a MODEL's sampler calls."""

    guidance: Guidance

    def __call__(self, executor: Any, guider: Any, sigmas: Tensor, extra_args: dict, *args: Any) -> Tensor:
        """A sampler call, guided."""
        check_one_device(guider.model_patcher)  # again: a later node may have changed it
        run = GuidedRun(self.guidance, wrapped_sampler(executor), guider)
        try:
            run.prepare()
            return go_on_with(executor, run.sampler())(guider, sigmas, extra_args, *args)
        finally:
            run.forget()


def guidance_of(model: Any) -> Guidance | None:
    """The guidance that a MODEL is patched with, or None."""
    found = sampler_wrapper(model, KEY)
    return found.guidance if isinstance(found, GuidedSampler) else None
