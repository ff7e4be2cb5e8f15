"""The stock sampler, and wrapping the samplers and runs of a MODEL."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from .required import (
    CALL_WRAPPER,
    PREPARE_WRAPPER,
    RUN_WRAPPER,
    SAMPLER_WRAPPER,
    KSampler,
    Sampler,
    WrapperExecutor,
    common_ksampler,
    sampler_object,
)

MAX_SEED = 2**64 - 1  # of KSampler


def seeds_from(first: int, count: int) -> list[int]:
    """`count` seeds, each the one after the other; 0 follows the largest."""
    return [(first + number) & MAX_SEED for number in range(count)]


def stock_sample(model: Any, latent: dict, **settings: Any) -> dict:
    """Run the host's own KSampler code; returns a LATENT.

    Args:
        settings: seed, steps, cfg, sampler_name, scheduler, positive, negative, denoise.
    """
    return common_ksampler(model, latent=latent, **settings)[0]


def sampler_named(name: str) -> Any | None:
    """The sampler (KSAMPLER) of a name in KSampler's menu, or None if the host cannot make it."""
    try:
        return sampler_object(name)
    except Exception:  # whatever it is: packs list names that only their own nodes can make a sampler of
        return None


def name_in_menu(sampler: Any) -> str | None:
    """The name in KSampler's menu of a sampler (KSAMPLER), or None if it is not there."""
    made = {name: sampler_named(name) for name in KSampler.SAMPLERS}
    listed = {name: one for name, one in made.items() if one is not None}
    function = sampler.sampler_function
    same = [name for name, own in listed.items() if own.sampler_function is function]
    # some of the host's are made anew each time
    same += [name for name, own in listed.items() if _is_remade(own.sampler_function, function)]
    # the host's ddim is euler with other noise
    return next((name for name in same if listed[name].inpaint_options == sampler.inpaint_options), None)


def _is_remade(one: Any, other: Any) -> bool:
    code, closures = getattr(one, "__code__", None), (getattr(f, "__closure__", None) for f in (one, other))
    return code is not None and code is getattr(other, "__code__", None) and not any(closures)


def wrap_sampler(model: Any, key: str, wrapper: Callable) -> None:
    """Have `wrapper`(executor, guider, sigmas, extra_args, ...) called in place of the sampler in every run of MODEL.

    Replaces an earlier wrapper with the same key.
    """
    model.remove_wrappers_with_key(SAMPLER_WRAPPER, key)
    model.add_wrapper_with_key(SAMPLER_WRAPPER, key, wrapper)


def sampler_wrapper(model: Any, key: str) -> Any:
    """The wrapper that wrap_sampler added to MODEL under this key, or None."""
    return next(iter(model.get_wrappers(SAMPLER_WRAPPER, key)), None)


def wrap_call(model: Any, key: str, wrapper: Callable) -> None:
    """Have `wrapper`(executor, x, sigmas, ...) called around each model call of a run of MODEL.

    The executor's `class_obj` is the guider. Replaces an earlier wrapper with the same key.
    """
    model.remove_wrappers_with_key(CALL_WRAPPER, key)
    model.add_wrapper_with_key(CALL_WRAPPER, key, wrapper)


def wrap_run(model: Any, key: str, wrapper: Callable) -> None:
    """Have `wrapper`(executor, ...) called around each run of MODEL, before the host loads models for it.

    Replaces an earlier wrapper with the same key.
    """
    model.remove_wrappers_with_key(RUN_WRAPPER, key)
    model.add_wrapper_with_key(RUN_WRAPPER, key, wrapper)


def wrap_preparation(model: Any, key: str, wrapper: Callable) -> None:
    """Have `wrapper`(executor, model, noise shape, ...) called around the loading of the models of each run of MODEL.

    Replaces an earlier wrapper with the same key.
    """
    model.remove_wrappers_with_key(PREPARE_WRAPPER, key)
    model.add_wrapper_with_key(PREPARE_WRAPPER, key, wrapper)


def unwrapped(model: Any, key: str) -> Any:
    """A clone of MODEL without the wrappers of this key, and without the models that are attached with it."""
    plain = model.clone()
    for kind in (SAMPLER_WRAPPER, CALL_WRAPPER, RUN_WRAPPER):
        plain.remove_wrappers_with_key(kind, key)
    plain.remove_additional_models(key)
    return plain


def wrapped_sampler(executor: Any) -> Any:
    """The sampler that the wrapper replaces."""
    return executor.class_obj


def go_on_with(executor: Any, sampler: Any) -> Callable:
    """A function that continues with another sampler, inside the remaining wrappers."""
    rest = executor.wrappers[executor.idx + 1 :]
    return WrapperExecutor.new_class_executor(sampler.sample, sampler, rest).execute


def denoising_modules(guider: Any, key: str) -> list[nn.Module]:
    """The networks that a model call runs: the denoiser, and others such as ControlNets.

    Args:
        key: the key of models that are loaded together with the denoiser but take no part in its calls.
    """
    apart = [patcher.model for patcher in guider.model_patcher.get_additional_models_with_key(key)]
    found = [patcher.model for patcher in (guider.model_patcher, *guider.loaded_models)]
    # T2I-Adapters and the VAEs of ControlNets are not in any loaded patcher
    for cond in (cond for conds in guider.conds.values() for cond in conds):
        control = cond.get("control")
        while control is not None:
            found += [getattr(control, "t2i_model", None), getattr(control.vae, "first_stage_model", None)]
            control = control.previous_controlnet
    modules = [module for module in found if isinstance(module, nn.Module)]
    return [module for module in modules if not any(module is other for other in apart)]


@contextmanager
def replaced_conditioning(guider: Any, change: Callable[[Any], Any]) -> Iterator[None]:
    """Within the block, model calls see the conditioning of this run as changed by `change`."""
    before = guider.conds
    guider.conds = change(before)
    try:
        yield
    finally:
        guider.conds = before


def shapes_of_conditioning(value: Any) -> tuple:
    """The shapes of all tensors in nested conditioning, and the kinds of ControlNets, in order."""
    if hasattr(value, "previous_controlnet"):
        return (type(value).__name__, *shapes_of_conditioning(value.previous_controlnet))
    if isinstance(value, torch.Tensor):
        return (tuple(value.shape),)
    if hasattr(value, "_copy_with") and hasattr(value, "cond"):
        return shapes_of_conditioning(value.cond)
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return tuple(shape for part in parts for shape in shapes_of_conditioning(part))


def needs_no_negative(guider: Any) -> bool:
    """Whether the host leaves out the negative prompt's half of the denoiser's work."""
    return getattr(guider, "cfg", None) == 1 and not guider.model_options.get(
        "disable_cfg1_optimization", False
    )


def has_weight_hooks(guider: Any) -> bool:
    """Whether the host changes the denoiser's weights during this run, for a prompt or part of one."""
    return any(guider.model_patcher.hook_patches.values())


def unguidable_sampling(model_sampling: Any) -> str | None:
    """The name of a sampling class whose noise scale guidance cannot use, or None if it can.

    A class that adds no noise is found by calling it. Two are known by name: IMG_TO_IMG inherits a noise that its network
    never sees, and CogVideoX's expects a latent that the host does not scale.
    """
    kinds = type(model_sampling).__mro__
    sigma = torch.as_tensor(model_sampling.sigma_max).detach().float().cpu().reshape(1)
    with torch.no_grad():
        noise = model_sampling.noise_scaling(sigma, torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))
    if not noise.any():
        return next(kind.__name__ for kind in kinds if "noise_scaling" in vars(kind))
    known = {"IMG_TO_IMG", "V_PREDICTION_DDPM"}
    return next((kind.__name__ for kind in kinds if kind.__name__ in known), None)


def signal_and_noise(model_sampling: Any, sigma: torch.Tensor, full: bool = False) -> tuple[float, float]:
    """alpha and sigma_t of the host's x = alpha * latent + sigma_t * noise at sigma.

    Args:
        full: as the host starts a run from pure noise, see starts_from_noise.
    """
    sigma = sigma.reshape(1).double().cpu()
    zero, one = torch.zeros(1, 1, 1, 1).double(), torch.ones(1, 1, 1, 1).double()
    # clones: the host scales noise in place
    alpha = model_sampling.noise_scaling(sigma, zero.clone(), one.clone(), full)
    noise = model_sampling.noise_scaling(sigma, one.clone(), zero.clone(), full)
    return float(alpha), float(noise)


def starts_from_noise(model_sampling: Any, sigmas: torch.Tensor) -> bool:
    """Whether the host starts a run over these sigmas from pure noise, at the model's largest sigma."""
    wrap = SimpleNamespace(inner_model=SimpleNamespace(model_sampling=model_sampling))
    return bool(Sampler().max_denoise(wrap, sigmas))


def time_left(model_sampling: Any, sigma: torch.Tensor) -> float:
    """The share of the diffusion time that is left at sigma (scalar): 1 at the model's largest sigma, 0 at its smallest.

    Time is what the network is told of the noise level, the host's `timestep`: the step of a discrete schedule, sigma of a
    flow (with its shift), the logarithm of sigma for EDM. It depends on the noise level alone, not on the number of steps.
    """
    now, least, most = (
        float(model_sampling.timestep(torch.as_tensor(value).reshape(1).float()))
        for value in (sigma, model_sampling.sigma_min, model_sampling.sigma_max)
    )
    return min(1.0, max(0.0, (now - least) / (most - least)))


def sigma_at(model_sampling: Any, share: float) -> float:
    """The sigma of the model's own schedule at which this share of the diffusion time is left, see time_left."""
    sigmas = model_sampling.sigmas.float()
    least, most = (
        model_sampling.timestep(torch.as_tensor(end).reshape(1).float().to(sigmas))
        for end in (model_sampling.sigma_min, model_sampling.sigma_max)
    )
    times = (model_sampling.timestep(sigmas) - least) / (most - least)
    return float(sigmas[(times - share).abs().argmin()])
