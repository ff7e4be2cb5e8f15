"""The prompts that the stages of tools/gpu/run.py queue."""

from __future__ import annotations

from typing import Any

from tools.gpu.bench import Bench, Size
from tools.gpu.files import ENCODER
from tools.gpu.rows import Prompt, Row

SAMPLER, STOCK = "JEPAGuidedKSampler", "KSampler"
# Inputs of the node in place of its defaults.
SETTINGS: dict[str, Row] = {
    "defaults": {},
    "faithful": {"preset": "faithful"},
    "balanced": {"preset": "balanced"},
    "fast": {"preset": "fast"},
    "denoiser constant": {"gradient_path": "denoiser constant"},
}


def node(kind: str, **inputs: Any) -> Row:
    return {"class_type": kind, "inputs": inputs}


def sampling(bench: Bench, **changes: Any) -> Row:
    """Inputs of a sampler node: few steps, and what `changes` puts in place."""
    few = {"seed": 1, "steps": bench.plan.steps, "cfg": 7.0, "sampler_name": "euler", "scheduler": "normal"}
    return few | {"denoise": 1.0} | changes


def graph(bench: Bench, size: Size, name: str, sampler: str = SAMPLER, **changes: Any) -> Prompt:
    """A prompt: a checkpoint, random conditioning, a sampler at its defaults but for `changes`, its latent saved.

    Only the last part depends on `name`, and the conditioning is a new one to the host each time, so that the
    sampler runs again and the loaders do not.
    """
    conditioning = {"width": size.width, "pooled": size.pooled, "tokens": bench.plan.tokens}
    inputs = sampling(bench) | {
        "model": ["checkpoint", 0],
        "positive": ["positive", 0],
        "negative": ["negative", 0],
        "latent_image": ["empty", 0],
    }
    if sampler == SAMPLER:
        start, end = bench.plan.guided
        inputs = bench.defaults(SAMPLER) | inputs | {"vae": ["checkpoint", 2], "encoder": ["encoder", 0]}
        inputs |= {"start_percent": start, "end_percent": end}
    encoder = f"{ENCODER}/model.safetensors"
    return {
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name=size.file),
        "encoder": node("JEPAEncoderLoader", encoder=encoder, image_size=bench.plan.encoder_pixels),
        "positive": node("GPUConditioning", **conditioning, seed=1, salt=bench.salt()),
        "negative": node("GPUConditioning", **conditioning, seed=2, salt=0),
        "empty": node("EmptyLatentImage", width=size.pixels, height=size.pixels, batch_size=1),
        "sample": node(sampler, **inputs | changes),
        "result": node("GPUResult", latent=["sample", 0], name=name),
    }


def watched(prompt: Prompt, name: str) -> Prompt:
    """The same prompt with the calls of its denoiser on record under `name`."""
    model = prompt["sample"]["inputs"]["model"]
    prompt["watch"] = node("GPUWatch", model=model, name=name)
    prompt["sample"]["inputs"]["model"] = ["watch", 0]
    prompt["result"]["inputs"]["name"] = name
    return prompt


def report(size: Size) -> Prompt:
    return {
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name=size.file),
        "report": node("GPUReport", model=["checkpoint", 0], vae=["checkpoint", 2]),
    }


def own_model(prompt: Prompt, **loader: Any) -> Prompt:
    """The same prompt with a denoiser of its own loader beside the checkpoint's VAE."""
    prompt["own"] = node(**loader)
    prompt["sample"]["inputs"]["model"] = ["own", 0]
    return prompt


def controlled(bench: Bench, **changes: Any) -> Prompt:
    """SD1.5 with a ControlNet on the positive conditioning."""
    size = bench.plan.sizes["SD1.5"]
    prompt = graph(bench, size, "control", **changes)
    prompt["control"] = node("ControlNetLoader", control_net_name="sd15_control.safetensors")
    prompt["picture"] = node(
        "EmptyImage", width=size.pixels, height=size.pixels, batch_size=1, color=0x336699
    )
    prompt["apply"] = node(
        "ControlNetApplyAdvanced",
        positive=["positive", 0],
        negative=["negative", 0],
        control_net=["control", 0],
        image=["picture", 0],
        strength=1.0,
        start_percent=0.0,
        end_percent=1.0,
    )
    prompt["sample"]["inputs"] |= {"positive": ["apply", 0], "negative": ["apply", 1]}
    return prompt
