"""Nodes for the servers of tools/gpu/run.py, beside the pack's own: they report, record, and occupy memory.

Their files go to the server's output folder, where the program reads them.
"""

import ctypes
import gc
import hashlib
import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

import comfy.memory_management
import comfy.model_management
import comfy.model_patcher
import folder_paths
import numpy
import torch
from comfyui_version import __version__ as host_version

GIB = 1 << 30
SEEN: dict[str, list[tuple[float, torch.Tensor]]] = {}
BALLAST: list[tuple[int, int]] = []


def output_file(name: str) -> Path:
    return Path(folder_paths.get_output_directory()) / name


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def cuda() -> bool:
    return comfy.model_management.get_torch_device().type == "cuda"


def memory() -> dict[str, float]:
    """GiB on the device: the peak of torch's tensors since the last reading, what is free, the total."""
    if not cuda():
        return {}
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    found = {"peak_GiB": torch.cuda.max_memory_allocated(), "free_GiB": free, "card_GiB": total}
    torch.cuda.reset_peak_memory_stats()
    return {name: round(value / GIB, 3) for name, value in found.items()}


def show(**facts: Any) -> dict:
    """What an output node returns to put facts into the prompt's history."""
    return {"ui": {"facts": [json.dumps(facts)]}}


class GPUReport:
    """How the host uses the device and these models."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "testing", "report", (), True

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"model": ("MODEL",), "vae": ("VAE",)}}

    def report(self, model: Any, vae: Any) -> dict:
        patcher = comfy.model_patcher
        device = comfy.model_management.get_torch_device()
        dynamic = patcher.CoreModelPatcher is patcher.ModelPatcherDynamic
        packages = ("comfy-aimdo", "comfy-kitchen", "transformers", "safetensors", "numpy", "triton")
        return show(
            device=comfy.model_management.get_torch_device_name(device),
            aimdo_enabled=bool(comfy.memory_management.aimdo_enabled),
            core_patcher_is_dynamic=dynamic,
            model_patcher=type(model).__name__,
            vae_patcher=type(vae.patcher).__name__,
            network=type(model.model).__name__,
            model_dtype=str(model.model.get_dtype()),
            vae_dtype=str(vae.vae_dtype),
            python=platform.python_version(),
            torch=torch.__version__,
            host=host_version,
            kitchen_backends=kitchen_backends(),
            **{package: version(package) for package in packages},
            **memory(),
        )


def kitchen_backends() -> dict[str, bool]:
    """Which of its backends comfy-kitchen would use."""
    try:
        import comfy_kitchen

        return {
            name: bool(facts["available"]) and not facts["disabled"]
            for name, facts in comfy_kitchen.list_backends().items()
        }
    except Exception as error:
        return {f"{type(error).__name__}: {error}": False}


class GPUConditioning:
    """Random conditioning (1, tokens, width), with a pooled vector unless `pooled` is 0.

    `salt` has no effect but this: a new one makes the host run everything after this node again.
    """

    CATEGORY, FUNCTION, RETURN_TYPES = "testing", "make", ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        sizes = ("width", "pooled", "tokens", "seed", "salt")
        return {"required": {name: ("INT", {"default": 0, "max": 1 << 62}) for name in sizes}}

    def make(self, width: int, pooled: int, tokens: int, seed: int, salt: int) -> tuple:
        generator = torch.Generator().manual_seed(seed)
        text = torch.randn(1, tokens, width, generator=generator)
        more = {"pooled_output": torch.randn(1, pooled, generator=generator)} if pooled else {}
        return ([[text, more]],)


class GPUWatch:
    """A MODEL that records every latent passed to its denoiser, and counts the calls in the file NAME.calls."""

    CATEGORY, FUNCTION, RETURN_TYPES = "testing", "watch", ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"model": ("MODEL",), "name": ("STRING", {"default": ""})}}

    def watch(self, model: Any, name: str) -> tuple:
        SEEN[name] = []

        def denoise(apply_model: Any, args: dict) -> torch.Tensor:
            latent = args["input"].detach()[:1].to("cpu", torch.float32, copy=True)
            # in a global: guidance restores the state of a patch after its extra calls
            seen = SEEN.setdefault(name, [])
            seen.append((args["timestep"].flatten()[0].item(), latent))
            output_file(f"{name}.calls").write_text(str(len(seen)))
            return apply_model(args["input"], args["timestep"], **args["c"])

        watched = model.clone()
        watched.set_model_unet_function_wrapper(denoise)
        return (watched,)


class GPUResult:
    """Saves a latent as NAME.npy, and GPUWatch's record of that name as NAME.npz: times (N,), latents (N, C, h, w)."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "testing", "save", (), True

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"latent": ("LATENT",), "name": ("STRING", {"default": ""})}}

    def save(self, latent: dict, name: str) -> dict:
        values = latent["samples"].float().cpu().contiguous().numpy()
        numpy.save(output_file(f"{name}.npy"), values)
        if name in SEEN:
            times, latents = zip(*SEEN.pop(name), strict=True)
            numpy.savez(output_file(f"{name}.npz"), times=times, latents=torch.cat(latents).numpy())
        return show(
            finite=bool(numpy.isfinite(values).all()),
            sha256=hashlib.sha256(values.tobytes()).hexdigest(),
            **memory(),
        )


class GPUBallast:
    """Occupies the card except for `free` GiB, or releases everything if `free` is 0.

    The memory comes from the driver, so no framework counts it as its own.
    """

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "testing", "hold", (), True

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"free": ("FLOAT", {"default": 0.0}), "salt": ("INT", {"default": 0})}}

    def hold(self, free: float, salt: int) -> dict:
        if not cuda():
            return show(held_GiB=None)
        gc.collect()
        comfy.model_management.soft_empty_cache()
        driver = ctypes.CDLL("libcuda.so.1")
        while BALLAST:
            address, _ = BALLAST.pop()
            check(driver.cuMemFree_v2(ctypes.c_uint64(address)), "cuMemFree")
        torch.cuda.synchronize()
        wanted = int(torch.cuda.mem_get_info()[0] - free * GIB)
        if free > 0 and wanted > 0:
            address_of = ctypes.c_uint64()
            check(driver.cuMemAlloc_v2(ctypes.byref(address_of), ctypes.c_size_t(wanted)), "cuMemAlloc")
            BALLAST.append((address_of.value, wanted))
        return show(held_GiB=round(sum(size for _, size in BALLAST) / GIB, 3), **memory())


def check(code: int, what: str) -> None:
    if code != 0:
        raise RuntimeError(f"{what} answered {code}")


NODE_CLASS_MAPPINGS = {
    kind.__name__: kind for kind in (GPUReport, GPUConditioning, GPUWatch, GPUResult, GPUBallast)
}
