"""The prompts that the stages queue."""

from __future__ import annotations

from typing import Any

from tools.gpu.plan import Size
from tools.gpu.random_models import ENCODER
from tools.gpu.rows import Prompt, Row
from tools.gpu.session import Session

SAMPLER, STOCK = "JEPAGuidedKSampler", "KSampler"
# Inputs of the guided sampler, and of its settings, that differ from their defaults.
SETTINGS: dict[str, Row] = {
    "defaults": {},
    "custom": {"preset": "custom"},
    "faithful": {"preset": "faithful"},
    "subtle": {"preset": "subtle"},
    "fast": {
        "preset": "custom",
        "gradient_path": "denoiser constant",
        "decoder": "tiny autoencoder, else encoder resolution",
        "denoiser_calls": "one",
        "range_finder": "tracked in half precision",
        "oversampling": 1,
        "power_iterations": 1,
    },
    "denoiser constant": {"preset": "custom", "gradient_path": "denoiser constant"},
}


def node(kind: str, **inputs: Any) -> Row:
    return {"class_type": kind, "inputs": inputs}


def graph(session: Session, size: Size, name: str, sampler: str = SAMPLER, **changes: Any) -> Prompt:
    """A checkpoint, random conditioning, a sampler at its defaults except for `changes`, and its latent saved.

    Only the last node depends on `name`. The salt makes the conditioning new each time, so that the host runs
    the sampler again but not the loaders.
    """
    plan = session.plan
    more: Prompt = {}
    conditioning = {"width": size.width, "pooled": size.pooled, "tokens": plan.tokens}
    inputs: Row = {"seed": 1, "steps": plan.steps, "cfg": 7.0, "denoise": 1.0}
    inputs |= {"sampler_name": "euler", "scheduler": "normal", "model": ["checkpoint", 0]}
    inputs |= {"positive": ["positive", 0], "negative": ["negative", 0], "latent_image": ["empty", 0]}
    if sampler == SAMPLER:
        start, end = plan.guided
        inputs = (
            session.default().defaults(SAMPLER)
            | inputs
            | {"vae": ["checkpoint", 2], "encoder": ["encoder", 0]}
        )
        inputs |= {"start_percent": start, "end_percent": end}
        technical = session.default().defaults("JEPAGuidanceSettings")
        inputs |= {"settings": ["settings", 0]}
        technical |= {name: changes.pop(name) for name in technical.keys() & changes.keys()}
        more = {"settings": node("JEPAGuidanceSettings", **technical)}
    encoder = f"{ENCODER}/model.safetensors"
    return more | {
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name=size.file),
        "encoder": node("JEPAEncoderLoader", encoder=encoder, image_size=plan.encoder_pixels),
        "positive": node("GPUConditioning", **conditioning, seed=1, salt=session.salt()),
        "negative": node("GPUConditioning", **conditioning, seed=2, salt=0),
        "empty": node("EmptyLatentImage", width=size.pixels, height=size.pixels, batch_size=1),
        "sample": node(sampler, **inputs | changes),
        "result": node("GPUResult", latent=["sample", 0], name=name),
    }


def watched(prompt: Prompt, name: str) -> Prompt:
    """The same prompt, with the calls of its denoiser recorded under `name`."""
    model = prompt["sample"]["inputs"]["model"]
    prompt["watch"] = node("GPUWatch", model=model, name=name)
    prompt["sample"]["inputs"]["model"] = ["watch", 0]
    prompt["result"]["inputs"]["name"] = name
    return prompt


def report(size: Size) -> Prompt:
    """What the host makes of a checkpoint."""
    return {
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name=size.file),
        "report": node("GPUReport", model=["checkpoint", 0], vae=["checkpoint", 2]),
    }


def own_model(prompt: Prompt, **loader: Any) -> Prompt:
    """The same prompt with a denoiser from another node, beside the checkpoint's VAE."""
    prompt["own"] = node(**loader)
    prompt["sample"]["inputs"]["model"] = ["own", 0]
    return prompt


def controlled(session: Session, **changes: Any) -> Prompt:
    """SD1.5 with a ControlNet on the positive conditioning."""
    size = session.plan.sizes["SD1.5"]
    prompt = graph(session, size, "control", **changes)
    prompt["control"] = node("ControlNetLoader", control_net_name="sd15_control.safetensors")
    picture = {"width": size.pixels, "height": size.pixels, "batch_size": 1, "color": 0x336699}
    prompt["picture"] = node("EmptyImage", **picture)
    links = {"positive": ["positive", 0], "negative": ["negative", 0], "control_net": ["control", 0]}
    amount = {"image": ["picture", 0], "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}
    prompt["apply"] = node("ControlNetApplyAdvanced", **links, **amount)
    prompt["sample"]["inputs"] |= {"positive": ["apply", 0], "negative": ["apply", 1]}
    return prompt
