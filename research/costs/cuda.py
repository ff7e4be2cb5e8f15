"""What guidance costs on a CUDA device, what it keeps in memory, and whether its promises hold there.

    python dev.py run research/costs/cuda.py [--out FILE.json]          a machine with CUDA

The denoiser and the KL decoder are the host's own classes at the size of Stable Diffusion 1.5 (512 pixels) and SDXL
(1024 pixels), with random weights in the precision that the host chooses for them on this device; they are resident,
as guidance needs them. DINOv2 ViT-S is the real trained encoder that JEPA_ENCODER names, -B and -L have the published
sizes and random weights, which changes neither operations nor memory but may change how many rounds the range finder
takes. Steps are timed as research/costs/step.py times them: the middle ones of twenty with CFG, every one guided, the first
one apart, and here with a clock that waits for the device at both ends of every stage. Each arm runs once untimed and
then several times; figures are medians.

Peak memory is torch's own count of what tensors hold, so without what the allocator keeps in reserve; "above weights"
is what a run takes beside the denoiser, VAE and encoders that lie on the device.

The gradient of a real photo is compared with the exact one, which research/costs/reference.py makes in float64 on the
processor (some minutes; kept in the folder for the next run), and a cancel button is pressed in the middle of guided steps.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from jepa_core import Encoder, RarityGradient, jepa_score, load_encoder
from research.costs.gradient import ARMS as GRADIENTS
from research.costs.gradient import PAPER, focus
from research.costs.guides import PUBLISHED
from research.costs.naive import naive_gradient
from research.costs.reference import cosine, references
from research.costs.score import SHIPPED
from research.costs.step import (
    NAIVE,
    STRENGTH,
    UNGUIDED,
    Networks,
    Stages,
    kl_vae,
    measure,
    preset_inputs,
    randomise,
    run_arm,
    tiny_autoencoder,
    with_ratios,
)
from research.effects.evaluate import Row, encoder_identity, pack_module
from research.harness.checkpoint_sizes import SD15_UNET, SDXL_UNET

GIB = 1 << 30
WORK = Path(__file__).absolute().parents[1] / "work"
NO_DEVICE = "this benchmark measures a CUDA device, and torch sees none on this machine"
# Preset of the node -> arm of research/costs/step.py; "custom" is the node as it comes, with the denoiser held constant.
PRESETS: dict[str, tuple[str, Row]] = {
    "faithful": ("faithful", {}),
    "custom": ("custom", {"gradient_path": "denoiser constant"}),
    "balanced": ("balanced", {}),
    "fast": ("fast", {}),
}
STEPS, REPEATS = 5, 2
TOP_K = 9
SIDE = 224


@dataclass(frozen=True)
class Size:
    """A denoiser: the host's configuration class and latent format, what its model detection reads, a side in pixels.

    others: encoders to measure with it beside the real one, published name -> label.
    """

    config: str
    unet: Row
    pixels: int
    pooled: int | None = None
    others: Mapping[str, str] = field(default_factory=dict)


# Encoders of published sizes with random weights; with one denoiser alone, as it does not change what they take.
RANDOM_ENCODERS = {"dinov2-base": "DINOv2 ViT-B, random", "dinov2-large": "DINOv2 ViT-L, random"}
SIZES = {
    "SDXL, 1024 px": Size("SDXL", SDXL_UNET, 1024, pooled=1280),
    "SD1.5, 512 px": Size("SD15", SD15_UNET, 512, others=RANDOM_ENCODERS),
}


# --- the device -----------------------------------------------------------------------------------------------------


def clock() -> float:
    """Seconds, once the device has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_memory(run: Callable[[], object]) -> dict[str, float]:
    """GiB that tensors hold on the device while `run` runs, at most, and how much more that is than before it."""
    gc.collect()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    peak = torch.cuda.max_memory_allocated()
    return {"peak_GiB": round(peak / GIB, 3), "above_weights_GiB": round((peak - before) / GIB, 3)}


def seconds_of(run: Callable[[], object], repeats: int) -> float:
    """The median of some runs, the first of which is not counted if there are others."""
    found = []
    for _ in range(repeats):
        begun = clock()
        run()
        found.append(clock() - begun)
    return round(statistics.median(found[1:] or found), 4)


# --- the networks ---------------------------------------------------------------------------------------------------


def random_model(size: Size) -> Any:
    """A MODEL made as a loader makes it, with random weights, in the precision that the host chooses."""
    import comfy.model_management as management
    import comfy.model_patcher
    import comfy.supported_models

    device = management.get_torch_device()
    with torch.inference_mode():
        config = getattr(comfy.supported_models, size.config)(size.unet)
        supported = config.supported_inference_dtypes
        dtype = management.unet_dtype(device, supported_dtypes=supported)
        config.set_inference_dtype(dtype, management.unet_manual_cast(dtype, device, supported))
        model = config.get_model({}, device=device)
        randomise(model.diffusion_model, seed=1)
    return comfy.model_patcher.ModelPatcher(model, device, management.unet_offload_device())


def random_networks(size: Size, encoder: Any) -> Networks:
    """A denoiser of this size, its VAE and its conditioning, all random, beside an encoder (a HostEncoder)."""
    width = size.unet["context_dim"]
    generator = torch.Generator().manual_seed(4)
    texts = torch.randn(2, 1, 77, width, generator=generator)
    pooled = torch.randn(2, 1, size.pooled or 1, generator=generator)
    more = [{"pooled_output": one} if size.pooled else {} for one in pooled]
    return Networks(
        random_model(size), kl_vae(None, None), encoder, [[texts[0], more[0]]], [[texts[1], more[1]]]
    )


def host_encoder(name: str, encoder: Encoder) -> Any:
    """An encoder as the node that loads it hands it on."""
    import comfy.model_management as management
    import comfy.model_patcher

    patcher = comfy.model_patcher.ModelPatcher(
        encoder, management.get_torch_device(), management.unet_offload_device()
    )
    return pack_module("host.encoders.host_encoder.host_encoder").HostEncoder(
        name, patcher, encoder.image_size
    )


def random_encoder(name: str) -> Encoder:
    """An encoder of a published size, float32, with random weights that keep activations of ordinary size."""
    torch.manual_seed(0)
    config = transformers.Dinov2Config(**PUBLISHED[name])
    config._attn_implementation = "eager"
    model = transformers.Dinov2Model(config).eval().requires_grad_(False)
    return Encoder(model, SIDE)


# --- what is measured -----------------------------------------------------------------------------------------------


def arm_row(networks: Networks, arm: str, pixels: int, steps: int, repeats: int) -> Row:
    """Seconds of an arm's steps as research.costs.step.measure gives them, medians over repeats, and its peak memory."""
    run_arm(
        networks, arm, 2, pixels, Stages(), arms=PRESETS
    )  # loads, and lets the libraries choose their kernels
    memory = peak_memory(partial(run_arm, networks, arm, 2, pixels, Stages(), arms=PRESETS))
    rows = [
        measure(networks, arm, steps, pixels, count=False, arms=PRESETS, clock=clock) for _ in range(repeats)
    ]
    return {
        "seconds": round(statistics.median(row["seconds"] for row in rows), 4),
        "cold_seconds": round(statistics.median(row["cold_seconds"] for row in rows), 4),
        "encoder_calls": rows[-1]["encoder_calls"],
        "stages": {
            name: {"seconds": round(statistics.median(row["stages"][name]["seconds"] for row in rows), 4)}
            for name in rows[0]["stages"]
        },
        **memory,
    }


def step_figures(networks: Networks, pixels: int, arms: Sequence[str], steps: int, repeats: int) -> Row:
    """{arm: its row}, with ratios; an arm that fails has a row that says how."""
    found: dict[str, Row] = {}
    failed: dict[str, Row] = {}
    for arm in arms:
        try:
            found[arm] = arm_row(networks, arm, pixels, steps, repeats)
        except (RuntimeError, ValueError) as error:
            failed[arm] = {"failed": f"{type(error).__name__}: {error}"[:300]}
        print(f"    {arm}: {found.get(arm) or failed[arm]}", flush=True)
    return with_ratios(found) | failed


def score_figures(encoder: Encoder, x: Tensor, repeats: int) -> dict[str, float]:
    """Seconds an image of each mode of the score, x (1, 3, S, S) preprocessed and on the encoder's device."""
    return {
        "exact": seconds_of(partial(jepa_score, encoder, x), repeats),
        f"top {TOP_K}": seconds_of(partial(jepa_score, encoder, x, top_k=TOP_K), repeats),
        "projected": seconds_of(partial(jepa_score, encoder, x, projection=SHIPPED), repeats),
    }


def gradient_figures(folder: Path, work: Path, encoder: Encoder, repeats: int) -> Row:
    """Seconds and accuracy of each way to the encoder's gradient, for a photo that comes into focus.

    The last image is the sharp photo; its exact gradient is made in float64 on the processor, and kept in `work`. Every
    arm sees the last images in turn, as guidance shows them; the paper's algorithm is timed at the last one alone.
    """
    exact_encoder = load_encoder(folder, dtype=torch.float64, image_size=encoder.image_size)
    images = [image.double() for image in focus(exact_encoder)[-1 - repeats :]]
    truth = references(work / f"references-cuda-{folder.name}", exact_encoder, {"photo": images[-1]})["photo"]
    device = encoder.weight.device
    shown = [image.to(device, torch.float32) for image in images]
    arms: Row = {}
    for arm, settings in GRADIENTS.items():
        for _ in range(2):  # what libraries set up at their first use is not counted
            rarity = RarityGradient(**settings)
            times, found = [], None
            for image in shown:
                begun = clock()
                found = rarity(encoder, image[None])
                times.append(clock() - begun)
        assert found is not None
        arms[arm] = {
            "cold_seconds": round(times[0], 4),
            "seconds": round(statistics.median(times[1:]), 4),
            "cosine": round(cosine(found.grad[0].cpu(), truth.grad), 5),
            "score_off": round(found.score.item() - truth.score.item(), 5),
            "encoder_calls": found.encoder_calls,
        }
    paper = naive_gradient(encoder, shown[-1])
    arms[PAPER] = {
        "seconds": seconds_of(partial(naive_gradient, encoder, shown[-1]), repeats),
        "cosine": round(cosine(paper.grad.cpu(), truth.grad), 5),
        "encoder_calls": paper.calls.sequential,
    }
    return {"residual_of_reference": truth.residual.max().item(), "arms": arms}


def promises(networks: Networks, pixels: int, arms: Sequence[str], presses: Sequence[float]) -> Row:
    """What holds on a processor, bit for bit, looked at here; and how long a cancelled run goes on.

    Args:
        presses: when the cancel button is pressed, in guided steps from the start of a run.
    """
    run = partial(run_arm, networks, pixels=pixels, arms=PRESETS)
    plain = run(UNGUIDED, steps=3, stages=Stages())
    found: Row = {
        "an unguided run repeats bit for bit": torch.equal(plain, run(UNGUIDED, steps=3, stages=Stages())),
        "arms": {},
    }
    for arm in arms:
        first = run(arm, steps=3, stages=Stages())
        again = run(arm, steps=3, stages=Stages())
        free = run(arm, steps=3, stages=Stages(), strength=0.0)
        begun = clock()
        run(arm, steps=2, stages=Stages())
        step = (clock() - begun) / 2
        found["arms"][arm] = {
            "guided run is finite and another than the stock sampler's": bool(
                first.isfinite().all() and not torch.equal(first, plain)
            ),
            "same seed twice gives the same bits": torch.equal(first, again),
            "largest difference of two runs, of the guided change": round(
                ((first - again).abs().max() / (first - plain).abs().max()).item(), 8
            ),
            "strength 0 gives the stock sampler's bits": torch.equal(free, plain),
            "seconds from cancel to the end": [
                seconds_to_stop(partial(run, arm, steps=8, stages=Stages()), press * step)
                for press in presses
            ],
            "seconds of a guided step": round(step, 4),
        }
    return found


def seconds_to_stop(run: Callable[[], object], after: float) -> float | None:
    """Seconds from the host's cancel button, pressed `after` seconds, to the end of a run; None if it ended before."""
    import comfy.model_management as management

    pressed: list[float] = []

    def press() -> None:
        pressed.append(time.perf_counter())
        management.interrupt_current_processing()

    button = threading.Timer(after, press)
    button.start()
    try:
        run()
    except management.InterruptProcessingException:
        return round(clock() - pressed[0], 4)
    finally:
        button.cancel()
        management.interrupt_current_processing(False)
    return None


# --- the whole ------------------------------------------------------------------------------------------------------


def settings_record(folder: Path, networks: Mapping[str, Row], steps: int, repeats: int) -> Row:
    """What the figures are of."""
    from comfyui_version import __version__ as host_version

    return {
        "command": "python dev.py run research/costs/cuda.py",
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "ComfyUI": host_version,
        "encoder": encoder_identity(folder),
        "networks": networks,
        "steps": f"{steps} of 20, the first apart; {repeats} runs",
        "strength": STRENGTH,
        "presets": {arm: preset_inputs(*PRESETS[arm]) for arm in PRESETS},
    }


def everything(folder: Path, work: Path, steps: int, repeats: int, out: Path) -> Row:
    """Measure all of it; what is there is written to `out` after every part."""
    import comfy.model_management as management
    import comfy.utils

    comfy.utils.PROGRESS_BAR_ENABLED = False
    device = management.get_torch_device()
    real = pack_module("host.encoders.host_encoder.host_encoder").load_host_encoder(folder, folder.name, SIDE)
    result: Row = {"settings": {}, "steps": {}, "scores": {}, "gradient": {}, "promises": {}}
    precisions: dict[str, Row] = {}

    def write() -> None:
        result["settings"] = settings_record(folder, precisions, steps, repeats)
        out.write_text(json.dumps(result, indent=1) + "\n")

    encoder = pack_module("host.encoders.host_encoder.host_encoder").use_encoder(real)
    x = encoder.preprocess(photo().to(device))
    result["gradient"] = gradient_figures(folder, work, encoder, repeats)
    result["scores"][folder.name] = score_figures(encoder, x, repeats)
    print(json.dumps(result["gradient"]), json.dumps(result["scores"]), flush=True)
    write()
    for name, size in SIZES.items():
        networks = random_networks(size, real)
        precisions[name] = {
            "denoiser": str(networks.model.model.get_dtype()),
            "vae": str(networks.vae.vae_dtype),
        }
        with tiny_autoencoder(size.config):
            arms = (UNGUIDED, *PRESETS, NAIVE)
            print(name, folder.name, flush=True)
            result["steps"][name] = {folder.name: step_figures(networks, size.pixels, arms, steps, repeats)}
            write()
            result["promises"][name] = promises(networks, size.pixels, tuple(PRESETS), (0.3, 1.4, 2.6))
            print(json.dumps(result["promises"][name]), flush=True)
            write()
            for other, label in size.others.items():
                print(name, label, flush=True)
                guide = host_encoder(label, random_encoder(other))
                changed = dataclasses.replace(networks, encoder=guide)
                result["steps"][name][label] = step_figures(changed, size.pixels, arms[:-1], steps, 1)
                management.load_models_gpu([guide.patcher])
                x = guide.encoder.preprocess(photo().to(device))
                result["scores"][label] = score_figures(guide.encoder, x, 2)
                print(json.dumps(result["scores"][label]), flush=True)
                write()
                del guide, changed
                management.unload_all_models()
        del networks
        management.unload_all_models()
        gc.collect()
        management.soft_empty_cache()
    return result


def photo() -> Tensor:
    """The photo whose gradient is measured, (1, H, W, 3) in [0, 1]."""
    from skimage import data

    return torch.from_numpy(data.astronaut())[None].float() / 255


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).absolute().parents[1] / "figures" / "cuda.json"
    )
    parser.add_argument("--folder", type=Path, default=WORK, help="where the exact gradient is kept")
    parser.add_argument("--steps", type=int, default=STEPS, help="of each run; the first one is the cold one")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="runs of each arm")
    parser.add_argument("--encoder", type=Path, default=os.environ.get("JEPA_ENCODER"), help="encoder folder")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print(NO_DEVICE, file=sys.stderr)
        return 1
    pack_module("host")  # tells the host which device there is
    everything(options.encoder, options.folder, options.steps, options.repeats, options.out)
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
