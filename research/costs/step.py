"""What a guided step costs beside an unguided one, on networks of Stable Diffusion 1.5's shape at 512 pixels.

    python dev.py run research/costs/step.py [--out FILE.json] [--arms NAME ...]

The denoiser, the KL decoder and the tiny autoencoder are the host's own classes with random weights; the encoder is
the real trained one that JEPA_ENCODER names. Everything is float32 on the processor, with CFG (conditional and
unconditional estimate in one batch), the host's Euler sampler, and the MODEL patch that the nodes use. Steps are the
middle ones of twenty, so that neighbouring ones are as far apart as in use; every one is guided. The first
("cold") is reported apart: the following start from the range that it found.

Seconds are taken at the calls of each stage, and what lies inside a stage counts for the inner one alone. Operations are
torch's count of matrix products and convolutions, in one more step that is not timed. The random images
say nothing about how many rounds the range finder takes on real ones: encoder_calls says how many it took
here, and research/figures/gradient.json how many it takes there.

Arms: the stock sampler; the paper's algorithm as research/costs/naive.py has it, with everything differentiated at full
size; the presets; and the presets with one choice changed.

Conclusion: a guided step costs 1.18 unguided ones with a tiny autoencoder and 1.43 with the VAE at the encoder's
resolution, because the denoiser is asked once; "fast" and "balanced" follow. The faithful path is no faster than the
paper's: four fifths of both are the denoiser and the full decoder, there and back.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from research.costs.naive import naive_gradient
from research.effects.evaluate import ROOT, Row, encoder_identity, node_inputs, pack_module
from research.harness.checkpoint_sizes import SD15_UNET, SD15_VAE

CPU = torch.device("cpu")
PIXELS = 512
# Of a sampling of twenty steps, the first that is run; half of the noise is gone by then.
TOTAL_STEPS, FIRST_STEP = 20, 8
CFG = 7.5
STRENGTH = 0.5
UNGUIDED, NAIVE = "unguided", "naive"
# Arm -> the preset it starts from, and inputs of the node in place of the preset's.
ARMS: dict[str, tuple[str, Row]] = {
    "faithful": ("faithful", {}),
    "faithful, nothing computed again": ("faithful", {"checkpointing": False}),
    "faithful, tracked in half precision, nothing computed again": (
        "faithful",
        {"checkpointing": False, "power_iterations": 1, "range_finder": "tracked in half precision"},
    ),
    "through denoiser, VAE at encoder resolution": ("balanced", {"gradient_path": "through denoiser"}),
    "balanced": ("balanced", {}),
    "fast": ("fast", {}),
    "fast without a tiny autoencoder": ("fast", {"decoder": "encoder resolution"}),
}

DENOISER = "denoiser"
DENOISER_WITH_GRAPH = "denoiser, forward"
DENOISER_BACKWARD = "denoiser, backward"
DECODER_FORWARD = "decoder, forward"
DECODER_BACKWARD = "decoder, backward"
ENCODER = "encoder, gradient"
REST = "rest"


# --- stages -------------------------------------------------------------------------------------------------


@dataclass(slots=True)  # guidance puts back what patches remember of its extra calls in their attributes
class Stages:
    """Adds up seconds and operations by stage; within nested stages the innermost is charged.

    The clock of a step starts where its first stage does and stops at `finish_step`.

    Attributes:
        operations: the count so far, of matrix products and convolutions.
        clock: seconds; None takes the processor's, which does not wait for a device.
        on_step: called with the number of steps so far after each.
        steps: for each step, {stage: (seconds, operations)}.
        encoder_calls: of each gradient, in turn.
    """

    operations: Callable[[], int] = lambda: 0
    clock: Callable[[], float] | None = None
    on_step: Callable[[int], object] = lambda _: None
    steps: list[dict[str, tuple[float, int]]] = field(default_factory=list)
    encoder_calls: list[int] = field(default_factory=list)
    _open: list[str] = field(default_factory=list)
    _charged: dict[str, tuple[float, int]] = field(default_factory=dict)
    _last: tuple[float, int] | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Charge what runs in the block to `name`."""
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def finish_step(self) -> None:
        """End a step; the next one starts at once."""
        self._charge()
        step, self._charged = self._charged, {}
        if DENOISER_WITH_GRAPH not in step and DENOISER_BACKWARD in step:
            # held constant, the denoiser has no backward pass, and this was the small change around the chain
            pairs = zip(step.get(REST, (0.0, 0)), step.pop(DENOISER_BACKWARD), strict=True)
            seconds, operations = (own + other for own, other in pairs)
            step[REST] = (seconds, int(operations))
        self.steps.append(step)
        self.on_step(len(self.steps))

    def _charge(self) -> None:
        now = ((self.clock or time.perf_counter)(), self.operations())
        if self._last is not None:
            name = self._open[-1] if self._open else REST
            seconds, operations = self._charged.get(name, (0.0, 0))
            self._charged[name] = (seconds + now[0] - self._last[0], operations + now[1] - self._last[1])
        self._last = now


@contextmanager
def watched(stages: Stages) -> Iterator[None]:
    """Within the block, the parts of the guidance chain report to `stages`.

    Functions of the pack are replaced and put back on any exit; what they compute stays the same.
    """
    chain = pack_module("host.gradient.chain")
    rarity = pack_module("jepa_core").RarityGradient
    parts = [
        (chain, "decoded", DECODER_FORWARD),
        # what these do themselves, beside the parts above and below, is the backward pass
        (chain.LatentGradient, "of_latent", DECODER_BACKWARD),
        (chain.LatentGradient, "__call__", DENOISER_BACKWARD),
        (rarity, "__call__", ENCODER),
    ]
    stock = [getattr(owner, name) for owner, name, _ in parts]
    try:
        for (owner, name, stage), function in zip(parts, stock, strict=True):
            setattr(owner, name, _reporting(stages, stage, function))
        yield
    finally:
        for (owner, name, _), function in zip(parts, stock, strict=True):
            setattr(owner, name, function)


def _reporting(stages: Stages, stage: str, function: Callable) -> Callable:
    def run(*args: Any, **kwargs: Any) -> Any:
        with stages.stage(stage):
            result = function(*args, **kwargs)
        if stage == ENCODER:
            stages.encoder_calls.append(result.encoder_calls)
        return result

    return run


# --- the networks -------------------------------------------------------------------------------------------


def randomise(module: nn.Module, seed: int) -> None:
    """Give every weight a random value that keeps activations of ordinary size; norms become the identity."""
    generator = torch.Generator(next(module.parameters()).device).manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, weight[0].numel() ** -0.5, generator=generator)
            else:
                weight.fill_(1.0 if name.endswith("weight") else 0.0)


def sd15_model() -> Any:
    """A MODEL of Stable Diffusion 1.5's shape, made as a loader makes it, with random weights."""
    import comfy.model_patcher
    import comfy.supported_models

    with torch.inference_mode():
        config = comfy.supported_models.SD15(SD15_UNET)
        config.set_inference_dtype(torch.float32, None)
        model = config.get_model({}, device=torch.device("cpu"))
        randomise(model.diffusion_model, seed=1)
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def kl_vae(dtype: torch.dtype | None = torch.float32, device: torch.device | None = CPU) -> Any:
    """The host's VAE with the KL autoencoder of Stable Diffusion 1.5's and SDXL's shape and random weights.

    Args:
        dtype, device: None takes what the host chooses.
    """
    import comfy.sd

    with torch.inference_mode():
        config = {"params": {"ddconfig": SD15_VAE, "embed_dim": 4}}
        # the host warns of every weight that no file brought
        before, logging.root.level = logging.root.level, logging.ERROR
        vae = comfy.sd.VAE(sd={}, config=config, dtype=dtype, device=device)
        logging.root.level = before
        randomise(vae.first_stage_model, seed=2)
    return vae


@contextmanager
def tiny_autoencoder(latent_format: str = "SD15") -> Iterator[None]:
    """Within the block the host's folder of tiny autoencoders holds one for these latents, with random weights."""
    import comfy.latent_formats
    import folder_paths
    from comfy.taesd.taesd import TAESD
    from safetensors.torch import save_file

    decoder = TAESD().taesd_decoder
    randomise(decoder, seed=3)
    name = f"{getattr(comfy.latent_formats, latent_format)().taesd_decoder_name}.safetensors"
    with tempfile.TemporaryDirectory() as folder:
        save_file(decoder.state_dict(), Path(folder) / name)
        before = folder_paths.folder_names_and_paths["vae_approx"]
        folder_paths.folder_names_and_paths["vae_approx"] = ([folder], {".safetensors"})
        folder_paths.filename_list_cache.pop("vae_approx", None)
        try:
            yield
        finally:
            folder_paths.folder_names_and_paths["vae_approx"] = before
            folder_paths.filename_list_cache.pop("vae_approx", None)


class NaiveChain:
    """A gradient function for apply_guidance: the paper's algorithm, unoptimised, in one pass after the other.

    The whole image is decoded and its graph kept beside the denoiser's, the resize is the authors', and the
    gradient of the guided score is research.costs.naive's.
    """

    def __init__(self, vae: Any, encoder: Any, stages: Stages) -> None:
        self.vae = vae
        self.encoder = encoder
        self.stages = stages

    def __call__(self, denoise: Callable[[Tensor], Tensor], x: Tensor, sigma: Tensor, base_model: Any) -> Any:
        """See LatentGradient.__call__ for the arguments."""
        chain = pack_module("host.gradient.chain")
        differentiable = pack_module("host.gradient.autograd").host_differentiable
        with differentiable(self.vae.first_stage_model, self.encoder):
            leaf = x.detach().clone().requires_grad_()
            clean = denoise(leaf)
            latent = base_model.process_latent_out(clean.clone())
            with self.stages.stage(DECODER_FORWARD):
                image = chain.decoded(self.vae, latent)
                seen = self.encoder.preprocess(image, antialias=False)
            with self.stages.stage(ENCODER):
                rarity = naive_gradient(self.encoder, seen.detach()[0])
            self.stages.encoder_calls.append(rarity.calls.sequential)
            with self.stages.stage(DECODER_BACKWARD):
                (gradient,) = torch.autograd.grad(seen, latent, rarity.grad[None], retain_graph=True)
            with self.stages.stage(DENOISER_BACKWARD):
                (gradient,) = torch.autograd.grad(latent, leaf, gradient)
        return chain.Slope(torch.tensor([rarity.score], dtype=torch.float64), gradient)


@dataclass(frozen=True)
class Networks:
    """Everything that an arm needs. encoder is a HostEncoder."""

    model: Any
    vae: Any
    encoder: Any
    positive: list
    negative: list


def load_networks(encoder: Path) -> Networks:
    """Build the random networks and load the real encoder from its folder."""
    pack_module("host")  # tells the host which device there is
    import comfy.utils

    comfy.utils.PROGRESS_BAR_ENABLED = False
    width = SD15_UNET["context_dim"]
    texts = torch.randn(2, 1, 77, width, generator=torch.Generator().manual_seed(4))
    return Networks(
        sd15_model(),
        kl_vae(),
        pack_module("host.encoders.host_encoder.host_encoder").load_host_encoder(encoder, encoder.name, 224),
        [[texts[0], {}]],
        [[texts[1], {}]],
    )


def preset_inputs(preset: str | None, changes: Row) -> Row:
    """The inputs of the node at their defaults, with a preset's in their place, and then `changes`."""
    return node_inputs() | pack_module("nodes.guidance_inputs").PRESETS.get(preset, {}) | changes


# --- the measurement ----------------------------------------------------------------------------------------


def run_arm(
    networks: Networks,
    arm: str,
    steps: int,
    pixels: int,
    stages: Stages,
    *,
    arms: Mapping[str, tuple[str, Row]] = ARMS,
    strength: float = STRENGTH,
) -> Tensor:
    """Sample `steps` steps of an arm, every one guided, and report them to `stages`; returns the latent."""
    steps_module = pack_module("host.guidance.patch.schedule")
    guidance = pack_module("host.guidance.patch.patch")
    model = networks.model.clone()

    def watch_denoiser(apply_model: Callable, call: Row) -> Tensor:
        with stages.stage(DENOISER_WITH_GRAPH if call["input"].requires_grad else DENOISER):
            return apply_model(call["input"], call["timestep"], **call["c"])

    model.set_model_unet_function_wrapper(watch_denoiser)
    schedule = steps_module.Schedule(strength=strength, start_percent=0.0, end_percent=1.0)
    if arm == NAIVE:
        model = guidance.apply_guidance(
            model,
            networks.vae,
            networks.encoder,
            schedule,
            pack_module("jepa_core").RarityGradient(),
            through_denoiser=True,
            gradient=NaiveChain(networks.vae, networks.encoder.encoder, stages),
        )
    elif arm != UNGUIDED:
        settings = preset_inputs(*arms[arm]) | {"vae": networks.vae, "encoder": networks.encoder}
        chain = pack_module("nodes.guidance_inputs").chain_of(settings)
        model = guidance.apply_guidance(model, schedule=schedule, **chain)
    with torch.inference_mode():
        latent = _sample(networks, model, steps, pixels, stages)
    if len(stages.steps) != steps:
        raise RuntimeError(f"{arm}: the sampler reported {len(stages.steps)} steps, expected {steps}")
    return latent


def _sample(networks: Networks, model: Any, steps: int, pixels: int, stages: Stages) -> Tensor:
    import comfy.sample

    latent = torch.zeros(1, 4, pixels // 8, pixels // 8)
    return comfy.sample.sample(
        model,
        comfy.sample.prepare_noise(latent, 0),
        TOTAL_STEPS,
        CFG,
        "euler",
        "normal",
        networks.positive,
        networks.negative,
        latent,
        start_step=FIRST_STEP,
        last_step=FIRST_STEP + steps,
        callback=lambda *_: stages.finish_step(),
        disable_pbar=True,
        seed=0,
    )


class _NoModules:
    """In place of the counter's record of modules, whose hooks fail in torch.autograd.grad."""

    parents = {"Global"}

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def count_operations() -> FlopCounterMode:
    """Torch's counter, taught the processor's kernel of attention, without its record of modules."""
    aten: Any = torch.ops.aten

    def forward(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def backward(cotangent: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_backward_flop_count(cotangent, query, key, value)

    counter = FlopCounterMode(
        display=False,
        custom_mapping={
            aten._scaled_dot_product_flash_attention_for_cpu: forward,
            aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
        },
    )
    record: Any = _NoModules()
    counter.mod_tracker = record
    return counter


def measure(
    networks: Networks,
    arm: str,
    steps: int,
    pixels: int,
    count: bool,
    *,
    arms: Mapping[str, tuple[str, Row]] = ARMS,
    clock: Callable[[], float] | None = None,
) -> Row:
    """Time an arm's steps by stage, and count the operations of a warm one.

    Args:
        steps: at least 2; all but the first are warm.
        count: operations as well, in one more step.
        clock: see Stages.

    Returns:
        Seconds of a warm step (median), of the cold one, of each, by stage (median), and TFLOP of a step by stage.
    """
    counter = count_operations()
    with ExitStack() as counting:
        stages = Stages(
            counter.get_total_flops,
            clock,
            # counting slows a step down, so it has one of its own at the end
            lambda done: counting.enter_context(counter) if count and done == steps else None,
        )
        with watched(stages):
            run_arm(networks, arm, steps + count, pixels, stages, arms=arms)
    counted = stages.steps[-1] if count else {}
    totals = [sum(seconds for seconds, _ in step.values()) for step in stages.steps[:steps]]
    warm = stages.steps[1:steps]
    row: Row = {
        "seconds": round(statistics.median(totals[1:]), 4),
        "cold_seconds": round(totals[0], 4),
        "each_step": [round(total, 4) for total in totals],
        "encoder_calls": stages.encoder_calls,
        "stages": {
            name: {
                "seconds": round(statistics.median(step.get(name, (0.0, 0))[0] for step in warm), 4),
                **({"tflop": round(counted.get(name, (0.0, 0))[1] / 1e12, 4)} if count else {}),
            }
            for name in sorted({name for step in warm for name in step})
        },
    }
    if count:
        row["tflop"] = round(sum(operations for _, operations in counted.values()) / 1e12, 4)
    return row


def with_ratios(arms: dict[str, Row]) -> dict[str, Row]:
    """Add to each arm what it is beside the unguided step and the paper's algorithm, where those were run.

    naive_over_this_at_best is what naive_over_this would be if the gradient of the encoder cost nothing and all
    else took as long as it did: the bound that the rest of the chain sets.
    """
    found = {}
    for arm, row in arms.items():
        row = dict(row)
        if UNGUIDED in arms:
            row["over_unguided"] = round(row["seconds"] / arms[UNGUIDED]["seconds"], 3)
            if "tflop" in row:
                row["tflop_over_unguided"] = round(row["tflop"] / arms[UNGUIDED]["tflop"], 3)
        if NAIVE in arms and arm != UNGUIDED:
            naive = arms[NAIVE]["seconds"]
            free = row["seconds"] - row["stages"].get(ENCODER, {}).get("seconds", 0.0)
            row["naive_over_this"] = round(naive / row["seconds"], 3)
            row["naive_over_this_at_best"] = round(naive / free, 3)
        found[arm] = row
    return found


def table(arms: dict[str, Row]) -> str:
    """The arms and their stages as lines of text."""
    lines = [f"{'':60}{'s':>9}{'TFLOP':>9}{'TFLOP/s':>9}{'/unguided':>11}{'naive/':>8}{'at best':>9}"]
    for arm, row in arms.items():
        ratios = [row.get(name) for name in ("over_unguided", "naive_over_this", "naive_over_this_at_best")]
        lines.append(
            _line(arm, row["seconds"], row.get("tflop"))
            + "".join(
                f"{'-' if ratio is None else f'{ratio:.2f}':>{width}}"
                for ratio, width in zip(ratios, (11, 8, 9), strict=True)
            )
        )
        lines += [
            _line(f"    {name}", stage["seconds"], stage.get("tflop"))
            for name, stage in row["stages"].items()
        ]
    return "\n".join(lines)


def _line(name: str, seconds: float, tflop: float | None) -> str:
    if tflop is None:
        return f"{name:60}{seconds:9.2f}{'-':>9}{'-':>9}"
    return f"{name:60}{seconds:9.2f}{tflop:9.3f}{tflop / max(seconds, 1e-9):9.3f}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "research" / "figures" / "step.json")
    parser.add_argument(
        "--arms", nargs="+", choices=(UNGUIDED, NAIVE, *ARMS), default=(UNGUIDED, NAIVE, *ARMS)
    )
    parser.add_argument("--steps", type=int, default=3, help="of each arm; the first one is the cold one")
    parser.add_argument("--pixels", type=int, default=PIXELS, help="a side of the image")
    parser.add_argument("--no-count", action="store_true", help="do not count operations")
    parser.add_argument("--encoder", type=Path, default=os.environ.get("JEPA_ENCODER"), help="encoder folder")
    options = parser.parse_args(arguments)
    if options.steps < 2:
        parser.error(f"--steps must be at least 2, got {options.steps}: the first one is not counted")

    networks = load_networks(options.encoder)
    found: dict[str, Row] = {}
    with tiny_autoencoder():
        # the libraries' own first use
        run_arm(networks, UNGUIDED, 1, options.pixels, Stages())
        for arm in options.arms:
            found[arm] = measure(networks, arm, options.steps, options.pixels, not options.no_count)
            print(f"{arm}: {found[arm]['each_step']} s", flush=True)
    found = with_ratios(found)
    record = {
        "settings": {
            "command": "python dev.py run research/costs/step.py",
            "pixels": options.pixels,
            "cfg": CFG,
            "sampler": f"euler, steps {FIRST_STEP} to {FIRST_STEP + options.steps - 1} of {TOTAL_STEPS}",
            "arms": {arm: preset_inputs(*ARMS[arm]) for arm in found if arm in ARMS},
            "encoder": encoder_identity(options.encoder),
            "torch": torch.__version__,
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        },
        "arms": found,
    }
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(table(found))
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
