"""How much of the faithful preset's effect each cheaper path to the image keeps, and for how much time.

    python dev.py run research/effects/paths.py --folder WORK [--seeds N] [--exact-seeds N]

The trained demo generator is sampled from the same noise in every arm: ten Euler steps, CFG 2, the sampler's default
schedule, strength 0.5, classes in turn. Each image is scored by a fixed random projection of the JEPA score (jepa_score with
48 outputs), and for --exact-seeds by the exact score. Seconds are those of the sampling alone, in one process,
arms in turn, after a run that is not counted.

This generator's VAE folds pixels and costs nothing at any size, so these arms compare the ways through the
denoiser and the range finders; what the decoders cost is in research/figures/step.json. "fast" decodes as "balanced" does
here, since there is no tiny autoencoder of such latents.

Resumable: run the same command again. Images lie in WORK, with one JSON line for each image and score. All arms
of a seed are made before the next seed; figures are of the seeds that have all of them.

Conclusion: tracking in half precision and one call of the denoiser keep all of the faithful change for a quarter of its
time; holding the denoiser constant keeps three quarters. "balanced" and "fast" hold it constant all the same, for the
memory and the time that a real denoiser takes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torchvision.transforms.functional import to_pil_image

from jepa_core.score import PROJECTION
from research.costs.step import preset_inputs
from research.effects import evaluate
from research.effects.evaluate import (
    ROOT,
    Row,
    Sampler,
    append_row,
    encoder_identity,
    load_picture,
    pack_module,
    picture_file,
    read_rows,
)
from research.judges.measures import mean_and_error

STRENGTH = 0.5
UNGUIDED, FAITHFUL = "unguided", "faithful"
TRACKED, HALF = "tracked", "tracked in half precision"
THROUGH: Row = {"gradient_path": "through denoiser", "decoder": "full", "checkpointing": False}
CONSTANT: Row = {"gradient_path": "denoiser constant", "decoder": "full", "checkpointing": False}
RANK: Row = {"rank": 9, "oversampling": 2, "power_iterations": 1}
# Arm -> a preset, or "custom", and inputs of the node in its place. The name is that of its files.
ARMS: dict[str, tuple[str, Row]] = {
    FAITHFUL: ("faithful", {}),
    "through-half": ("custom", THROUGH | RANK | {"denoiser_calls": "two", "range_finder": HALF}),
    "through-half-one-call": ("custom", THROUGH | RANK | {"denoiser_calls": "one", "range_finder": HALF}),
    "constant": ("custom", CONSTANT | RANK | {"denoiser_calls": "two", "range_finder": TRACKED}),
    "constant-half": ("custom", CONSTANT | RANK | {"denoiser_calls": "two", "range_finder": HALF}),
    "balanced": ("balanced", {}),
    "fast": ("fast", {}),
}
ALL_ARMS = (UNGUIDED, *ARMS)
# As jepa_score's argument: the score, lower is rarer.
SCORES: dict[str, int | None] = {"projected": PROJECTION, "exact": None}


# --- the work -----------------------------------------------------------------------------------------------


def guided_model(sampler: Sampler, arm: str) -> Any:
    """The MODEL of an arm: the stock one, or guided as the node guides it with the arm's inputs."""
    if arm == UNGUIDED:
        return sampler.model
    inputs = pack_module("nodes.guidance_inputs")
    preset, changes = ARMS[arm]
    settings = preset_inputs(preset, changes) | {"strength": STRENGTH}
    settings |= {"vae": sampler.vae, "encoder": sampler.encoder}
    return sampler.guidance.apply_guidance(
        sampler.model, schedule=inputs.schedule_of(settings), **inputs.chain_of(settings)
    )


def sample(sampler: Sampler, seed: int, arm: str) -> tuple[Any, float]:
    """Make one image (PIL); returns it with the seconds that sampling took, without making the MODEL ready."""
    model = guided_model(sampler, arm)
    begun = time.perf_counter()
    pixels = sampler.sample(model, seed)
    seconds = time.perf_counter() - begun
    return to_pil_image(pixels.movedim(-1, 0)), seconds


def make_images(folder: Path, seeds: Sequence[int], arms: Sequence[str], sampler: Sampler) -> None:
    """Make what is missing of every arm of every seed."""
    work = folder / "samples.jsonl"
    done = {(row["seed"], row["arm"]) for row in read_rows(work)}
    missing = [(seed, arm) for seed in seeds for arm in arms if (seed, arm) not in done]
    if not missing:
        return
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for arm in (UNGUIDED, "balanced"):  # the libraries' own first use
        sample(sampler, missing[0][0], arm)
    for seed, arm in missing:
        picture, seconds = sample(sampler, seed, arm)
        picture.save(picture_file(folder, seed, arm))
        append_row(work, {"seed": seed, "arm": arm, "seconds": round(seconds, 3)})
        print(f"seed {seed} {arm}: {seconds:.1f} s", flush=True)


def score_images(
    folder: Path, seeds: Sequence[int], arms: Sequence[str], kind: str, sampler: Sampler
) -> None:
    """Score what is missing of every arm of every seed; `kind` is one of SCORES."""
    work = folder / "scores.jsonl"
    done = {(row["seed"], row["arm"], row["kind"]) for row in read_rows(work)}
    encoder = sampler.encoder.encoder
    for seed in seeds:
        for arm in arms:
            if (seed, arm, kind) in done:
                continue
            x = encoder.preprocess(load_picture(picture_file(folder, seed, arm)))
            score = sampler.core.jepa_score(encoder, x, projection=SCORES[kind]).item()
            append_row(work, {"seed": seed, "arm": arm, "kind": kind, "score": score})
            print(f"seed {seed} {arm} {kind}: {score:.2f}", flush=True)


# --- the figures --------------------------------------------------------------------------------------------


def complete_seeds(values: dict[tuple[int, str], float], arms: Sequence[str]) -> list[int]:
    """Seeds of which every arm has a value."""
    return [
        seed for seed in sorted({seed for seed, _ in values}) if all((seed, arm) in values for arm in arms)
    ]


def summarise(
    seconds: dict[tuple[int, str], float], scores: dict[tuple[int, str], float], arms: Sequence[str]
) -> dict[str, Row]:
    """What each arm changes beside the unguided one, from the same seeds.

    Args:
        seconds, scores: of (seed, arm).
        arms: with UNGUIDED and FAITHFUL.

    Returns:
        For each arm: change (mean and standard error of its score minus the unguided one's), seconds (median),
        extra_seconds (median of the differences), share (of the faithful arm's mean change, with the
        jackknife's standard error), change_per_extra_second.
    """
    seeds = complete_seeds(scores, arms)
    if not seeds:
        return {}
    changes = {arm: [scores[seed, arm] - scores[seed, UNGUIDED] for seed in seeds] for arm in arms}
    found = {}
    for arm in arms:
        row: Row = {"seconds": round(statistics.median(seconds[seed, arm] for seed in seeds), 2)}
        if arm != UNGUIDED:
            extra = statistics.median(seconds[seed, arm] - seconds[seed, UNGUIDED] for seed in seeds)
            row["change"] = mean_and_error(changes[arm])
            row["extra_seconds"] = round(extra, 2)
            row["share"] = share(changes[arm], changes[FAITHFUL])
            row["change_per_extra_second"] = round(statistics.fmean(changes[arm]) / extra, 4)
        found[arm] = row
    return found


def share(changes: Sequence[float], reference: Sequence[float]) -> Row:
    """Mean change over mean reference change, paired, with the jackknife's standard error (None for one pair)."""
    count = len(changes)
    whole = sum(changes) / sum(reference)
    if count < 2:
        return {"mean": round(whole, 4), "standard_error": None}
    without = [
        (sum(changes) - own) / (sum(reference) - other) for own, other in zip(changes, reference, strict=True)
    ]
    middle = statistics.fmean(without)
    error = ((count - 1) / count * sum((value - middle) ** 2 for value in without)) ** 0.5
    return {"mean": round(whole, 4), "standard_error": round(error, 4)}


def table(summary: dict[str, Row]) -> str:
    """The figures as lines of text."""
    lines = [f"{'':24}{'change':>20}{'share of faithful':>22}{'s':>8}{'extra s':>9}{'change / extra s':>18}"]
    for arm, row in summary.items():
        if arm == UNGUIDED:
            lines.append(f"{arm:24}{'-':>20}{'-':>22}{row['seconds']:8.1f}")
            continue
        change, kept = (
            f"{row[name]['mean']:.2f} +- {row[name]['standard_error'] or 0:.2f}"
            for name in ("change", "share")
        )
        lines.append(
            f"{arm:24}{change:>20}{kept:>22}{row['seconds']:8.1f}{row['extra_seconds']:9.1f}"
            f"{row['change_per_extra_second']:18.3f}"
        )
    return "\n".join(lines)


def finish(folder: Path, target: Path, arms: Sequence[str], settings: Row) -> None:
    """Aggregate what was made so far into the figures."""
    seconds = {(row["seed"], row["arm"]): row["seconds"] for row in read_rows(folder / "samples.jsonl")}
    rows = read_rows(folder / "scores.jsonl")
    measures = {}
    for kind in SCORES:
        scores = {(row["seed"], row["arm"]): row["score"] for row in rows if row["kind"] == kind}
        summary = summarise(seconds, scores, arms)
        if summary:
            measures[kind] = {"seeds": complete_seeds(scores, arms), "arms": summary}
            print(f"{kind}\n{table(summary)}")
    record = {"settings": settings, "measures": measures}
    target.write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {target}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="where images and progress are kept")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--exact-seeds", type=int, default=0, help="score this many seeds exactly as well")
    parser.add_argument(
        "--arms", nargs="+", choices=ALL_ARMS, default=ALL_ARMS, help="unguided and faithful always run"
    )
    parser.add_argument("--encoder", type=Path, default=os.environ.get("JEPA_ENCODER"), help="encoder folder")
    parser.add_argument("--out", type=Path, default=ROOT / "research" / "figures" / "paths.json")
    options = parser.parse_args(arguments)
    arms = [arm for arm in ALL_ARMS if arm in {UNGUIDED, FAITHFUL, *options.arms}]

    sampler = Sampler(options.encoder, power_iterations=1)
    seeds = range(options.seeds)
    make_images(options.folder, seeds, arms, sampler)
    score_images(options.folder, seeds, arms, "projected", sampler)
    score_images(options.folder, seeds[: options.exact_seeds], arms, "exact", sampler)
    settings = {
        "command": f"python dev.py run research/effects/paths.py --folder WORK --seeds {options.seeds}"
        + (f" --exact-seeds {options.exact_seeds}" if options.exact_seeds else "")
        + ("" if arms == list(ALL_ARMS) else f" --arms {' '.join(arms)}"),
        "steps": evaluate.STEPS,
        "cfg": evaluate.CFG,
        "sampler": evaluate.SAMPLER,
        "scheduler": evaluate.SCHEDULER,
        "strength": STRENGTH,
        "projection": PROJECTION,
        "arms": {arm: preset_inputs(*ARMS[arm]) for arm in arms if arm in ARMS},
        "encoder": encoder_identity(options.encoder),
        "generator": hashlib.sha256(sampler.demo.WEIGHTS.read_bytes()).hexdigest(),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }
    finish(options.folder, options.out, arms, settings)


if __name__ == "__main__":
    main()
