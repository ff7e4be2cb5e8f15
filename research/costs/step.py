"""What does a guided step cost beside an unguided one, on networks of the shape of Stable Diffusion 1.5 or SDXL?

    python dev.py run research/costs/step.py [--out FILE.json] [--arms NAME ...]

The host's denoiser, KL decoder and tiny autoencoder with random weights, the real trained encoder, float32 on the
processor, CFG in one batch, Euler, the MODEL patch of the nodes. The middle steps of twenty, every one guided; the first
("cold") is reported apart, since the following start from the range that it found. Seconds are taken at the calls of
each stage; operations are matrix products and convolutions, counted in one more step that is not timed. Random images say
nothing about how many rounds the range finder takes on real ones: see research/figures/gradient.json.

Conclusion: a guided step costs 1.18 unguided ones with a tiny autoencoder and 1.43 with the VAE at the encoder's
resolution, because the denoiser is asked once. The faithful path is no faster than the paper's program
(research/harness/naive.py): four fifths of both are the denoiser and the full decoder, there and back.
"""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from jepa_core.reference import NO_SCORE, Reference, ReferencePart
from research.harness import program, timing
from research.harness.naive import naive_gradient
from research.harness.networks import (
    CFG,
    FIRST_STEP,
    SD15,
    SDXL,
    TOTAL_STEPS,
    Networks,
    random_networks,
    tiny_autoencoder,
)
from research.harness.pack_api import (
    ScoreGradient,
    chain,
    host_differentiable,
    load_host_encoder,
    preset_inputs,
    seen_as,
)
from research.harness.program import Row, markdown
from research.harness.timing import Stages, count_operations

UNGUIDED, NAIVE = "unguided", "naive"
# Arm -> the way (preset_inputs) it starts from, and inputs of the node in place of the preset's.
ARMS: dict[str, tuple[str, Row]] = {
    "faithful": ("faithful", {}),
    "faithful, nothing computed again": ("faithful", {"checkpointing": False}),
    "faithful, tracked in half precision, nothing computed again": (
        "faithful",
        {"checkpointing": False, "power_iterations": 1, "range_finder": "tracked in half precision"},
    ),
    "through denoiser, VAE at encoder resolution": ("subtle", {"gradient_path": "through denoiser"}),
    "subtle": ("subtle", {}),
    "custom": ("custom", {"gradient_path": "denoiser constant"}),
    "fast": ("fast", {}),
    "fast without a tiny autoencoder": ("fast", {"decoder": "encoder resolution"}),
    "through denoiser, VAE at encoder resolution, novelty": (
        "subtle",
        {"gradient_path": "through denoiser", "criterion": "novelty"},
    ),
    "subtle, novelty": ("subtle", {"criterion": "novelty"}),
    "fast, novelty": ("fast", {"criterion": "novelty"}),
}
SIZES = {"sd15": SD15, "sdxl": SDXL}
NOTHING: tuple[float, int] = (0.0, 0)  # of a stage that a step does not have


def naive_chain(vae: Any, encoder: Any, stages: Stages) -> Callable[..., Any]:
    """A gradient function for apply_guidance: the paper's algorithm, unoptimised, in one pass after the other.

    The whole image is decoded and its graph kept beside the denoiser's, the resize is the authors', and the
    gradient of the guided score is research.costs.naive's.
    """

    def gradient(denoise: Callable[[Tensor], Tensor], x: Tensor, sigma: Tensor, base_model: Any) -> Any:
        with host_differentiable(vae.first_stage_model, encoder):
            leaf = x.detach().clone().requires_grad_()
            latent = base_model.process_latent_out(denoise(leaf).clone())
            with stages.stage(timing.DECODER_FORWARD):
                seen = encoder.preprocess(chain.decoded(vae, latent), antialias=False)
            with stages.stage(timing.ENCODER):
                rarity = naive_gradient(encoder, seen.detach()[0])
            stages.encoder_calls.append(rarity.calls.sequential)
            with stages.stage(timing.DECODER_BACKWARD):
                (found,) = torch.autograd.grad(seen, latent, rarity.grad[None], retain_graph=True)
            with stages.stage(timing.DENOISER_BACKWARD):
                (found,) = torch.autograd.grad(latent, leaf, found)
        return ScoreGradient(torch.tensor([rarity.score], dtype=torch.float64), found)

    return gradient


def random_reference(encoder: Any, embeddings: int) -> Reference:
    """A reference of this many embeddings of pictures that do not exist."""
    inner = encoder.encoder
    random = torch.randn(embeddings, inner.embed_dim, generator=torch.Generator().manual_seed(6))
    part = ReferencePart(encoder.name, inner.fingerprint, inner.image_size, random, random)
    return Reference((part,), {"mode": NO_SCORE} | seen_as("squash", True))


def run_arm(
    networks: Networks,
    arm: str,
    steps: int,
    pixels: int,
    stages: Stages,
    strength: float = 0.5,
    embeddings: int = 300,
) -> Tensor:
    """Sample `steps` steps of an arm, every one guided, and report them to `stages`; returns the latent."""
    everywhere = {"strength": strength, "start_percent": 0.0, "end_percent": 1.0}
    networks = dataclasses.replace(networks, model=networks.model.clone())
    networks.model.set_model_unet_function_wrapper(stages.watch_denoiser)
    if arm == UNGUIDED:
        model = networks.model
    elif arm == NAIVE:
        gradient = naive_chain(networks.vae, networks.encoder.encoder, stages)
        model = networks.guided(preset_inputs(changes=everywhere), gradient)
    else:
        preset, changes = ARMS[arm]
        inputs = preset_inputs(preset, changes | everywhere)
        usual = random_reference(networks.encoder, embeddings) if "criterion" in changes else None
        model = networks.guided(inputs, reference=usual)
    latent = networks.sample(model, steps, pixels, stages)
    if len(stages.steps) != steps:
        raise RuntimeError(f"{arm}: the sampler reported {len(stages.steps)} steps, expected {steps}")
    return latent


def measure(networks: Networks, arm: str, steps: int, pixels: int, count: bool, embeddings: int = 300) -> Row:
    """Time an arm's steps by stage, and count the operations of a warm one.

    Args:
        steps: at least 2; all but the first are warm.
        count: operations as well, in one more step.
        embeddings: of the reference, where there is one.

    Returns:
        Seconds of a warm step (median), of the cold one, of each, by stage (median), and TFLOP of a step by stage.
    """
    counter = count_operations()
    with ExitStack() as counting:
        # counting slows a step down, so an extra one at the end is counted
        stages = Stages(
            counter.get_total_flops,
            lambda done: counting.enter_context(counter) if count and done == steps else None,
        )
        with stages.watching():
            run_arm(networks, arm, steps + count, pixels, stages, embeddings=embeddings)
    totals = [round(sum(seconds for seconds, _ in step.values()), 4) for step in stages.steps[:steps]]
    warm, counted = stages.steps[1:steps], stages.steps[-1]
    parts: dict[str, Row] = {}
    for name in sorted({name for step in warm for name in step}):
        seconds = statistics.median(step.get(name, NOTHING)[0] for step in warm)
        parts[name] = {"seconds": round(seconds, 4)}
        if count:
            parts[name]["tflop"] = round(counted.get(name, NOTHING)[1] / 1e12, 4)
    row = {"seconds": round(statistics.median(totals[1:]), 4), "cold_seconds": totals[0], "each_step": totals}
    row |= {"encoder_calls": stages.encoder_calls, "stages": parts}
    tflop = sum(operations for _, operations in counted.values()) / 1e12
    return row | ({"tflop": round(tflop, 4)} if count else {})


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
            free = row["seconds"] - row["stages"].get(timing.ENCODER, {}).get("seconds", 0.0)
            row["naive_over_this"] = round(naive / row["seconds"], 3)
            row["naive_over_this_at_best"] = round(naive / free, 3)
        found[arm] = row
    return found


def table(figures: Row) -> str:
    """A guided step beside an unguided one and beside the paper's."""
    columns = {
        "guided step": "{arm}",
        "s": "{seconds:.1f}",
        "times an unguided step": "{over_unguided:.2f}",
        "times faster than the paper's": "{naive_over_this:.2f}",
    }
    return markdown(columns, [{"arm": arm, **one} for arm, one in figures["arms"].items()])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = program.parser(__file__, __doc__, program.FIGURES / "step.json")
    every = (UNGUIDED, NAIVE, *ARMS)
    parser.add_argument("--arms", nargs="+", choices=every, default=every)
    parser.add_argument("--steps", type=int, default=3, help="of each arm; the first one is the cold one")
    parser.add_argument("--size", choices=list(SIZES), default="sd15", help="of the networks")
    parser.add_argument("--pixels", type=int, help="a side of the image; by default as the network's")
    parser.add_argument("--embeddings", type=int, default=300, help="of the reference of novelty")
    parser.add_argument("--no-count", action="store_true", help="do not count operations")
    options = parser.parse_args(arguments)
    if options.steps < 2:
        parser.error(f"--steps must be at least 2, got {options.steps}: the first one is not counted")
    encoder = load_host_encoder(options.encoder, options.encoder.name, 224)
    size = SIZES[options.size]
    options.pixels = options.pixels or size.pixels
    networks = random_networks(size, encoder, torch.float32)
    found: dict[str, Row] = {}
    with tiny_autoencoder(size.config):
        # the libraries' own first use
        run_arm(networks, UNGUIDED, 1, options.pixels, Stages())
        for arm in options.arms:
            found[arm] = measure(
                networks, arm, options.steps, options.pixels, not options.no_count, options.embeddings
            )
            print(f"{arm}: {found[arm]['each_step']} s", flush=True)
    last = FIRST_STEP + options.steps - 1
    settings = program.settings(
        parser,
        options,
        cfg=CFG,
        sampler=f"euler, steps {FIRST_STEP} to {last} of {TOTAL_STEPS}",
        arms={arm: preset_inputs(*ARMS[arm]) for arm in found if arm in ARMS},
    )
    record = {"settings": settings, "arms": with_ratios(found)}
    program.write(options.out, record, table)


if __name__ == "__main__":
    main()
