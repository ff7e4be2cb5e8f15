"""Guidance with masks, LoRA, ControlNet, regional prompts, prompt ranges and batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import comfy.cldm.cldm
import comfy.controlnet
import comfy.hooks
import comfy.ops
import comfy.sd
import comfy.supported_models as supported
import comfy.t2i_adapter.adapter
import nodes as host_nodes
import pytest
import torch
from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion
from jepa_guidance.host.guidance.schedule import Schedule
from torch import Tensor

from jepa_core import RarityGradient
from tests.host.families import CPU, Family, half_mask, image_vae, model_of, numbers, randomise, unet
from tests.host.guidance.test_families import (
    QUICK,
    check_inside,
    encoder_of,
    exact_family,
    family_of,
    guided,
    sample,
    zero_gradient,
)
from tests.host.guide import guide_model

Condition = Callable[[Family], tuple[Any, dict]]


# --- conditions: a changed MODEL, and settings of the sampler ------------------------------------------------------


def cfg_1(family: Family) -> tuple[Any, dict]:
    return family.model, {"cfg": 1.0}


def cfg_7(family: Family) -> tuple[Any, dict]:
    return family.model, {"cfg": 7.0}


def cfg_20(family: Family) -> tuple[Any, dict]:
    return family.model, {"cfg": 20.0}


def picture(family: Family, batch: int = 1) -> Tensor:
    """A latent of a picture, in the VAE's scale."""
    shape = family.latent["samples"].shape[1:]
    with torch.inference_mode():
        return numbers(20, batch, *shape) / getattr(family.model.model.latent_format, "scale_factor", 1.0)


def image_to_image(family: Family) -> tuple[Any, dict]:
    return family.model, {"latent_image": {"samples": picture(family)}, "denoise": 0.6}


def mask_of(family: Family) -> Tensor:
    """A mask of the upper half, at the latent's resolution."""
    mask = torch.zeros(1, 1, *family.latent["samples"].shape[-2:])
    mask[..., : mask.shape[-2] // 2, :] = 1
    return mask


def inpainting(family: Family) -> tuple[Any, dict]:
    return family.model, {"latent_image": {"samples": picture(family), "noise_mask": mask_of(family)}}


def differential(family: Family) -> tuple[Any, dict]:
    """A mask with fractional values, and a function that thresholds it at each step."""
    mask = mask_of(family)
    mask[..., 1, :] = 0.5
    latent = {"samples": picture(family), "noise_mask": mask}
    return DifferentialDiffusion.execute(family.model).result[0], {"latent_image": latent}


def batch_of_three(family: Family) -> tuple[Any, dict]:
    """Each image has another mask and other noise."""
    masks = torch.cat([mask_of(family), torch.ones_like(mask_of(family)), 1 - mask_of(family)])
    if family.latent["samples"].ndim == 5:
        masks = masks.unsqueeze(2)  # otherwise the host takes a batch of masks for the frames of one video
    latent = {"samples": picture(family, 3), "noise_mask": masks, "batch_index": [4, 0, 2]}
    return family.model, {"latent_image": latent}


def lora_of(model: Any, seed: int = 30) -> dict[str, Tensor]:
    """A LoRA of rank 2 for every matrix of the denoiser, with the host's generic key names."""
    weights = {}
    with torch.inference_mode():
        for name, weight in model.model.diffusion_model.named_parameters():
            if weight.ndim == 2 and name.endswith(".weight"):
                key = "diffusion_model." + name.removesuffix(".weight")
                weights[f"{key}.lora_up.weight"] = numbers(seed, weight.shape[0], 2) / 2
                weights[f"{key}.lora_down.weight"] = (
                    numbers(seed + 1, 2, weight.shape[1]) / weight.shape[1] ** 0.5
                )
    return weights


def lora(family: Family) -> tuple[Any, dict]:
    with torch.inference_mode():
        return comfy.sd.load_lora_for_models(family.model, None, lora_of(family.model), 0.5, 0)[0], {}


def control_network(dtype: torch.dtype) -> comfy.controlnet.ControlNet:
    """A ControlNet for SD1.5, with hints of 8 times the latent's side."""
    sizes = unet(use_linear_in_transformer=False, num_heads=8)
    sizes = {
        name: size for name, size in sizes.items() if name not in ("out_channels", "transformer_depth_output")
    }
    with torch.inference_mode():
        network = comfy.cldm.cldm.ControlNet(
            **sizes, hint_channels=3, dtype=dtype, operations=comfy.ops.disable_weight_init
        )
        randomise(network, seed=4)
        return comfy.controlnet.ControlNet(network, load_device=CPU)


def with_control(family: Family, control: Any, strength: float = 0.8) -> dict:
    apply = host_nodes.ControlNetApplyAdvanced().apply_controlnet
    with torch.inference_mode():
        hint = numbers(21, 1, 64, 64, 3).sigmoid()
        pair = apply(family.positive, family.negative, control, hint, strength, 0.0, 1.0)
    return dict(zip(("positive", "negative"), pair, strict=True))


def controlnet(family: Family) -> tuple[Any, dict]:
    return family.model, with_control(family, control_network(family.vae.vae_dtype))


def two_controlnets(family: Family) -> tuple[Any, dict]:
    settings = with_control(family, control_network(family.vae.vae_dtype))
    return family.model, with_control(replace(family, **settings), control_network(family.vae.vae_dtype), 0.3)


def t2i_adapter(family: Family) -> tuple[Any, dict]:
    """Its features enter a third block of the UNet, so this UNet has one."""
    sizes = unet(use_linear_in_transformer=False, num_res_blocks=[2], transformer_depth=[1, 1])
    sizes |= {"transformer_depth_output": [1, 1, 1]}
    model = model_of(supported.SD15, sizes, dtype=family.vae.vae_dtype)
    with torch.inference_mode():
        network = comfy.t2i_adapter.adapter.Adapter(
            [32], nums_rb=2, cin=64, ksize=1, sk=True, use_conv=False, xl=False
        )
        randomise(network, seed=4)
        control = comfy.controlnet.T2IAdapter(network, 1, 8, "nearest-exact", device=CPU)
    return model, with_control(family, control)


def areas(family: Family) -> tuple[Any, dict]:
    """One prompt for the left half, one for everything."""
    area = host_nodes.ConditioningSetArea().append
    with torch.inference_mode():
        (left,) = area(family.positive, width=32, height=64, x=0, y=0, strength=1.0)
    return family.model, {"positive": left + other(family.positive)}


def masked_prompts(family: Family) -> tuple[Any, dict]:
    """Two prompts with different masks, one of them cropped to the bounds of its mask."""
    set_mask = host_nodes.ConditioningSetMask().append
    with torch.inference_mode():
        mask = half_mask()[0]
        (upper,) = set_mask(family.positive, mask, "default", 1.0)
        (lower,) = set_mask(other(family.positive), 1 - mask, "mask bounds", 0.7)
    return family.model, {"positive": upper + lower}


def other(conditioning: list) -> list:
    with torch.inference_mode():
        return [[-tensor, extra] for tensor, extra in conditioning]


def ranges(family: Family) -> tuple[Any, dict]:
    """One prompt for the first half of the steps, one for the rest."""
    limit = host_nodes.ConditioningSetTimestepRange().set_range
    with torch.inference_mode():
        (first,) = limit(family.positive, 0.0, 0.5)
        (rest,) = limit(other(family.positive), 0.5, 1.0)
    return family.model, {"positive": first + rest}


def longer_prompt(family: Family) -> tuple[Any, dict]:
    """Prompts of different lengths, which the host repeats or runs one after the other."""
    with torch.inference_mode():
        return family.model, {"positive": [[torch.cat([t, -t], 1), extra] for t, extra in family.positive]}


def hooked_lora(family: Family) -> tuple[Any, dict]:
    """A LoRA attached to the positive prompt only: the host changes the weights within each call."""
    with torch.inference_mode():
        key_map = comfy.lora.model_lora_keys_unet(family.model.model, {})
        loaded = comfy.lora.load_lora(lora_of(family.model), key_map)
        hooks = comfy.hooks.create_hook_lora(lora_of(family.model), 0.5, 0.0)
        hooks.hooks[0].weights, hooks.hooks[0].need_weight_init = loaded, False
    return family.model, {"positive": comfy.hooks.set_hooks_for_conditioning(family.positive, hooks)}


def reference_latents(family: Family) -> tuple[Any, dict]:
    """A picture to edit, in addition to the prompt."""
    settings = {}
    for name in ("positive", "negative"):
        pairs = getattr(family, name)
        settings[name] = [[t, extra | {"reference_latents": [picture(family)]}] for t, extra in pairs]
    return family.model, settings


GENERAL = (cfg_1, cfg_7, cfg_20, image_to_image, inpainting, differential, batch_of_three, lora)
PROMPTS = (areas, masked_prompts, ranges)
CASES = [
    *(("sd15", condition) for condition in (*GENERAL, *PROMPTS, longer_prompt)),
    *(("sd15", condition) for condition in (controlnet, two_controlnets, t2i_adapter)),
    ("sd15_inpaint", inpainting),
    *(("flux", condition) for condition in (*GENERAL, *PROMPTS, reference_latents)),
    *(("qwen_image", condition) for condition in (*GENERAL, ranges, reference_latents)),
    *(("sd3", condition) for condition in (inpainting, batch_of_three, lora)),
]
# Cases whose gradient is checked in every test run.
QUICK_CHECKS = {("sd15", lora), ("sd15", controlnet), ("sd15", areas), ("sd15", t2i_adapter)}
QUICK_CHECKS |= {("sd15", differential), ("sd15", batch_of_three), ("sd15_inpaint", inpainting)}
QUICK_CHECKS |= {("flux", reference_latents), ("qwen_image", inpainting)}


def case_id(case: tuple[str, Condition]) -> str:
    return f"{case[0]}-{case[1].__name__}"


def cases(quick: Callable[[tuple[str, Condition]], bool]) -> Any:
    """All cases; those that are not quick are marked long."""
    marked = [case if quick(case) else pytest.param(case, marks=pytest.mark.long) for case in CASES]
    return pytest.mark.parametrize("case", marked, ids=[case_id(case) for case in CASES])


# --- checks -------------------------------------------------------------------------------------------------------


@cases(lambda case: case[0].startswith("sd15") or case in QUICK_CHECKS)
def test_a_zero_gradient_is_bit_identical_to_the_stock_sampler(case):
    name, condition = case
    family = family_of(name)
    model, settings = condition(family)
    settings["steps"] = 3
    plain = sample(family, model, **settings)
    for through in (False, True):
        patched = guided(family, encoder_of(), model=model, gradient=zero_gradient, through_denoiser=through)
        assert torch.equal(sample(family, patched, **settings), plain)


def test_every_condition_changes_the_stock_image():
    """Otherwise checking it would be pointless."""
    for name, condition in CASES:
        family = family_of(name)
        model, settings = condition(family)
        plain = sample(family, model if condition is t2i_adapter else None, steps=2)
        changed = sample(family, model, **settings | {"steps": 2})
        assert changed.shape != plain.shape or not torch.equal(changed, plain), (name, condition.__name__)


@cases(lambda case: case[0].startswith("sd15") or case in QUICK_CHECKS)
def test_a_guided_run_is_finite_and_keeps_the_unmasked_part(case):
    check_run(case, through=True)


@cases(lambda case: case[1] in (inpainting, differential, batch_of_three) and case[0] == "sd15")
def test_the_same_with_the_denoiser_held_constant(case):
    check_run(case, through=False)


def check_run(case: tuple[str, Condition], through: bool) -> None:
    name, condition = case
    family = family_of(name)
    model, settings = condition(family)
    settings["steps"] = 2
    reports: list[Any] = []
    patched = guided(family, encoder_of(), model=model, through_denoiser=through, report=reports.append)
    image = sample(family, patched, **settings)
    plain = sample(family, model, **settings)
    assert image.isfinite().all()
    assert all(not torch.equal(one, before) for one, before in zip(image, plain, strict=True))
    steps = reports[-1].guided_steps
    assert steps
    assert all(torch.tensor(step.score).isfinite().all() for step in steps)
    mask = settings.get("latent_image", {}).get("noise_mask")
    if mask is not None and name != "sd15_inpaint":
        kept = (mask == 0).reshape(len(mask), 1, *[1] * (image.ndim - 4), *mask.shape[-2:]).expand_as(image)
        assert torch.equal(image[kept], plain[kept])


@cases(lambda case: case in QUICK_CHECKS)
def test_the_gradient_through_the_denoiser_is_the_finite_difference(case):
    name, condition = case
    family = exact_family(name)
    model, settings = condition(family)
    settings.setdefault("cfg", 3.0)
    encoder = encoder_of(torch.float64)
    plain = check_inside(family, encoder, True, model=model, **settings)
    again = check_inside(family, encoder, True, model=model, checkpointing=True, **settings)
    for one, two in zip(plain, again, strict=True):
        assert (one - two).abs().max() <= 1e-3 * one.abs().max()


@pytest.mark.parametrize("condition", [controlnet, t2i_adapter])
def test_the_first_step_may_be_guided_where_the_host_prepares_the_hint(condition):
    """No earlier step has run the adapter under inference mode."""
    family = family_of("sd15")
    model, settings = condition(family)
    schedule = Schedule(start_percent=0.0, end_percent=1.0)
    patched = guided(family, encoder_of(), schedule, model=model, through_denoiser=True)
    image = sample(family, patched, **settings)
    assert image.isfinite().all()
    assert not torch.equal(image, sample(family, model, **settings))
    assert torch.equal(sample(family, model, **settings), sample(family, model, **settings))


def test_autograd_notices_a_control_written_in_place_and_the_unet_runs_again_once(monkeypatch):
    family = family_of("sd15")
    network = family.model.model.diffusion_model
    forward, calls = network.forward, []

    def counted(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not x.is_meta:  # the plan of memory calls it without data
            calls.append(1)
        return forward(x, *args, **kwargs)

    monkeypatch.setattr(network, "forward", counted)
    counts, passes, passes_of = [], [], []
    model = guided(family, encoder_of(), through_denoiser=True, on_pass=lambda: passes.append(1))
    for settings in ({}, controlnet(family)[1]):
        # the first run of a network also checks its gradient
        for _ in range(2):
            calls.clear()
            passes.clear()
            sample(family, model, steps=3, **settings)
        counts.append(len(calls))
        passes_of.append(len(passes))
    # three steps, two of them guided
    assert counts == [5, 6]
    # the score is not computed again
    assert passes_of[0] == passes_of[1] > 0


# --- a LoRA attached to a prompt -------------------------------------------------------------------------------------


def test_a_hooked_lora_is_guided_with_the_denoiser_held_constant():
    family = family_of("sd15")
    _, settings = hooked_lora(family)
    plain = sample(family, **settings)
    assert not torch.equal(plain, sample(family))
    zero = guided(family, encoder_of(), gradient=zero_gradient)
    assert torch.equal(sample(family, zero, **settings), plain)
    image = sample(family, guided(family, encoder_of()), **settings)
    assert image.isfinite().all()
    assert not torch.equal(image, plain)
    assert torch.equal(sample(family, **settings), plain)


def test_a_hooked_lora_is_not_differentiated_and_the_run_says_so():
    family = family_of("sd15")
    _, settings = hooked_lora(family)
    expected = sample(family, guided(family, encoder_of()), **settings)
    reports: list[Any] = []
    model = guided(family, encoder_of(), through_denoiser=True, report=reports.append)
    assert torch.equal(sample(family, model, **settings), expected)
    assert "LoRA that comes with the conditioning" in reports[-1].message()


# --- refusals before any step -------------------------------------------------------------------------------------


def refuse(model: Any, vae: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        guide_model(model, vae, encoder_of(), Schedule(), RarityGradient(**QUICK))


def test_a_vae_of_other_dimensions_is_refused():
    """Although both have 16 channels."""
    still, flat = family_of("wan_still"), family_of("flux")
    refuse(still.model, flat.vae, "latents of 2 dimensions, the model makes 3")
    refuse(flat.model, still.vae, "latents of 3 dimensions, the model makes 2")


def test_a_vae_of_other_channels_is_refused():
    refuse(family_of("sd15").model, family_of("sd3").vae, "16 channels, the model makes 4")


def test_an_audio_model_is_refused():
    family = family_of("sd15")
    sound = family.model.clone()
    sound.add_object_patch("latent_format", comfy.latent_formats.StableAudio1())
    refuse(sound, family.vae, "this model's latents have 1 dimension")


def test_an_audio_vae_is_refused():
    """ACE's latents have the shape of image latents."""
    family = family_of("sd15")
    vae = image_vae(4)
    vae.output_channels = 2
    refuse(family.model, vae, "decodes to 2 channels, not to a picture")


def test_a_vae_that_leaves_pixels_to_another_node_is_refused():
    family = family_of("wan_still")
    vae = type(family.vae).__new__(type(family.vae))
    vae.__dict__ = dict(vars(family.vae)) | {"conv_out_channels": 12}
    refuse(family.model, vae, "decodes to 12 channels, not to a picture")
