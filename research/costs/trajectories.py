"""Real sampling trajectories: what the encoder is shown, step after step, on the way to an image.

    python dev.py run research/costs/trajectories.py --folder WORK [--guided]

The demo generator is sampled with Euler steps, unguided or guided with the sampler's defaults, and the
decoded clean estimate of every step from 20 % on is kept: what the guide sees before it moves the latent.
The default schedule ends at 80 %; later estimates are kept too, since a schedule may run to the end.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from research.effects.evaluate import Sampler, pack_module

STEPS = (4, 20, 50)
SEEDS = (0, 1, 2)


class Recorder:
    """A gradient function for apply_guidance that keeps the images the guide is shown.

    Args:
        vae: decodes the clean estimates.
        active: for each call in turn, whether `gradient` moves the latent at it; elsewhere it stays.
        gradient: the chain that guides; None never moves the latent.
        decoded, slope: LatentGradient's decoding and the type of its result.

    Attributes:
        images: one (H, W, 3) image in [0, 1] for each call.
    """

    def __init__(self, vae: Any, active: Sequence[bool], gradient: Any, decoded: Any, slope: Any) -> None:
        self.images: list[Tensor] = []
        self._vae = vae
        self._active = active
        self._gradient = gradient
        self._decoded = decoded
        self._slope = slope

    def __call__(self, denoise: Any, x: Tensor, sigma: Tensor, base_model: Any) -> Any:
        """Keep the image of the clean estimate; see LatentGradient.__call__ for the arguments."""
        call = len(self.images)
        with torch.inference_mode(False), torch.no_grad():
            latent = base_model.process_latent_out(denoise(x).clone())
            self.images.append(self._decoded(self._vae, latent)[0].clone())
        if self._gradient is not None and self._active[call]:
            return self._gradient(denoise, x, sigma, base_model)
        # a zero gradient shifts by exactly nothing
        return self._slope(torch.zeros(len(x), dtype=torch.float64), torch.zeros_like(x))


def guided_mask(sampler: Sampler, steps: int) -> list[bool]:
    """Which images of a trajectory of `steps` steps the default schedule guides at."""
    default = sampler.steps.Schedule()
    guided = default.guided_steps(steps)
    return [step in guided for step in dataclasses.replace(default, end_percent=1.0).guided_steps(steps)]


def trajectory(sampler: Sampler, seed: int, steps: int, rarity: Any = None) -> tuple[Tensor, Tensor]:
    """Sample once and return the decoded clean estimates and the final image.

    Args:
        rarity: a RarityGradient that guides by the default schedule (strength, range, interval); None
            leaves the sampler unguided.

    Returns:
        (T, H, W, 3) in [0, 1], the estimates of every step from the schedule's start to the last, and the
        image (H, W, 3).
    """
    chain = pack_module("host.gradient.chain")
    default = sampler.steps.Schedule()
    active = guided_mask(sampler, steps)
    # the default's own strength at each step, with a range that runs on so that later steps are seen
    schedule = dataclasses.replace(
        default, strength=default.step_strength(sum(active)), strength_rule="per_step", end_percent=1.0
    )
    gradient = None
    if rarity is not None:
        gradient = chain.LatentGradient(sampler.vae, [chain.Guide(sampler.encoder.encoder)], rarity)
        rarity.reset()
    recorder = Recorder(sampler.vae, active, gradient, chain.decoded, chain.Slope)
    model = sampler.guidance.apply_guidance(
        sampler.model,
        sampler.vae,
        sampler.encoder,
        schedule,
        rarity or sampler.core.RarityGradient(),
        gradient=recorder,
    )
    final = sampler.sample(model, seed, steps)
    with torch.inference_mode(False):
        return torch.stack(recorder.images).float(), final.clone().float()


def trajectories(
    folder: Path,
    sampler: Sampler | None = None,
    *,
    seeds: Sequence[int] = SEEDS,
    steps: Sequence[int] = STEPS,
    rarity: Any = None,
) -> dict[str, Tensor]:
    """Return {name: (T, H, W, 3)} for every seed and number of steps, made where `folder` lacks them.

    Names are "<unguided or guided>-s<steps>-<seed>". See `trajectory` for T and for rarity; without a
    sampler only what the folder holds is returned.
    """
    kind = "unguided" if rarity is None else "guided"
    found = {}
    for count in steps:
        for seed in seeds:
            name = f"{kind}-s{count}-{seed}"
            file = folder / f"{name}.safetensors"
            if not file.exists() and sampler is not None:
                folder.mkdir(parents=True, exist_ok=True)
                images, final = trajectory(sampler, seed, count, rarity)
                unfinished = file.with_suffix(".tmp")
                save_file({"images": images.contiguous(), "final": final.contiguous()}, unfinished)
                unfinished.replace(file)
            if file.exists():
                found[name] = load_file(file)["images"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="where trajectories are kept")
    parser.add_argument("--encoder", type=Path, default=os.environ.get("JEPA_ENCODER"), help="encoder folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS))
    parser.add_argument("--guided", action="store_true", help="the guided ones too")
    options = parser.parse_args()
    sampler = Sampler(options.encoder, power_iterations=1)
    for rarity in (None, sampler.core.RarityGradient()) if options.guided else (None,):
        found = trajectories(options.folder, sampler, seeds=options.seeds, steps=options.steps, rarity=rarity)
        for name, images in found.items():
            print(name, tuple(images.shape), flush=True)


if __name__ == "__main__":
    main()
