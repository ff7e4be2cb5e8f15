"""Guided images against four controls, from the same noise: the figures in research/figures/evaluation.json.

    python dev.py run research/effects/evaluate.py --folder WORK             make images, score them, write the figures
    python dev.py run research/effects/evaluate.py --folder WORK --finish    only write the figures of what is there

Resumable: run the same command again. Images lie in WORK, with one JSON line for each, and one for each
score. Every prefix of the work is a whole experiment: all arms of a seed are made before the next seed. To
use two processes, give one `--shard 0/2` and the other `--shard 1/2`.

Arms, all with 10 Euler steps, CFG 2 and the sampler's defaults, classes in turn:

    unguided   the stock sampler
    guided     strength 0.5 from 20 % to 80 % of the steps, denoiser held constant; "settings" has the rest
    reversed   strength -0.5
    random     a random direction of the same largest entry, at the same steps
    through    guided through the denoiser
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from research.harness.sheet import contact_sheet
from research.judges.measures import (
    encoder_identity,
    judge,
    judge_held_out,
    load_bank,
    load_classifier,
    mean_and_error,
)

ROOT = Path(__file__).absolute().parents[2]
ARMS = ("unguided", "guided", "reversed", "random", "through")
# Scored exactly first: what the main question needs.
EXACT_ARMS = ("unguided", "guided", "random")
STEPS, CFG, SAMPLER, SCHEDULER = 10, 2.0, "euler", "simple"
SCORES = ("exact", "projected")
PROJECTED = 32  # outputs of the encoder that the cheap score looks at
SHEET_SEEDS = 8

Row = dict[str, Any]


# --- the pack, in this process ------------------------------------------------------------------------------


def pack_module(name: str) -> Any:
    """Import a module of the pack as a host does, below a package of the folder's own."""
    if "jepa_guidance" not in sys.modules:
        from comfy.cli_args import args

        args.cpu = not torch.cuda.is_available()
        spec = importlib.util.spec_from_file_location(
            "jepa_guidance", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        assert spec is not None
        assert spec.loader is not None
        sys.modules["jepa_guidance"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["jepa_guidance"])
    return importlib.import_module(f"jepa_guidance.{name}")


def node_inputs() -> Row:
    """The inputs of the guiding nodes at their defaults."""
    inputs = pack_module("nodes.guidance_inputs").guidance_inputs()
    return {entry.id: entry.default for entry in inputs if hasattr(entry, "default")}


def random_gradient(seed: int) -> Callable[..., Any]:
    """A gradient function for apply_guidance that returns noise; normalised, it has the same maximum."""
    slope = pack_module("host.gradient.chain").Slope
    generator = torch.Generator().manual_seed(seed)

    def gradient(denoise: object, x: Tensor, sigma: Tensor, base_model: object) -> Any:
        noise = torch.randn(x.shape, generator=generator).to(x)
        return slope(torch.zeros(len(x), dtype=torch.float64), noise)

    return gradient


class Sampler:
    """The demo generator, its guide and the host's sampler, ready for any seed and arm."""

    def __init__(self, encoder: Path, power_iterations: int, interval: int = 1) -> None:
        import comfy.utils

        comfy.utils.PROGRESS_BAR_ENABLED = False
        self.demo = pack_module("host.generators.demo")
        self.guidance = pack_module("host.guidance.patch.patch")
        self.steps = pack_module("host.guidance.patch.schedule")
        self.sampling = pack_module("host.comfy.sampling")
        self.core = pack_module("jepa_core")
        self.power_iterations = power_iterations
        self.interval = interval
        self.model, self.vae = self.demo.load_demo_generator()
        self.encoder = pack_module("host.encoders.host_encoder.host_encoder").load_host_encoder(
            encoder, encoder.name, 224
        )

    def __call__(self, seed: int, arm: str, **schedule: Any) -> tuple[Image.Image, Row]:
        """Make one image; returns it with what guidance reported of it. `schedule` changes the defaults."""
        reports: list[Any] = []
        pixels = self.sample(self._model(seed, arm, reports.append, schedule), seed, STEPS)
        guided = [step for step in reports[-1].steps if step["guided"]] if reports else []
        names = ("step", "sigma", "score", "gradient_norm", "shift")
        trace = [{name: _number(step[name]) for name in names} for step in guided]
        return to_pil_image(pixels.movedim(-1, 0)), {"trace": trace}

    def sample(self, model: Any, seed: int, steps: int = STEPS) -> Tensor:
        """Sample a MODEL for the class of a seed; returns the decoded image (H, W, 3)."""
        with torch.inference_mode():
            empty = torch.zeros(1, 4, 8, 8)  # what Empty Latent Image makes of 64 x 64
            latent = self.sampling.stock_sample(
                model,
                {"samples": empty, "downscale_ratio_spacial": 8},
                seed=seed,
                steps=steps,
                cfg=CFG,
                sampler_name=SAMPLER,
                scheduler=SCHEDULER,
                positive=self.demo.demo_conditioning(class_of(seed, self.demo.demo_classes())),
                negative=self.demo.demo_conditioning("any"),
                denoise=1.0,
            )
            return self.vae.decode(latent["samples"])[0]

    def schedule(self, **changes: Any) -> Any:
        """The node's default schedule with this sampler's interval."""
        return self.steps.Schedule(**{"interval": self.interval} | changes)

    def _model(self, seed: int, arm: str, report: Callable[[Any], object], schedule: Row) -> Any:
        if arm == "unguided":
            return self.model
        return self.guidance.apply_guidance(
            self.model,
            self.vae,
            self.encoder,
            self.schedule(**schedule | ({"strength": -0.5} if arm == "reversed" else {})),
            self.core.RarityGradient(power_iterations=self.power_iterations),
            through_denoiser=arm == "through",
            gradient=random_gradient(seed) if arm == "random" else None,
            report=report,
        )


def _number(value: Any) -> float:
    return round(value[0] if isinstance(value, list) else value, 6)


def class_of(seed: int, classes: Sequence[str]) -> str:
    """The class that a seed draws: all but "any", in turn."""
    return classes[1 + seed % (len(classes) - 1)]


# --- the work -----------------------------------------------------------------------------------------------


def read_rows(file: Path) -> list[Row]:
    """The JSON lines of a file; lines that a killed process left unfinished are left out."""
    parsed = (parse_row(line) for line in (file.read_text().splitlines() if file.exists() else []))
    return [row for row in parsed if row is not None]


def parse_row(line: str) -> Row | None:
    """A line as an object, or None if it is none."""
    try:
        return dict(json.loads(line))
    except ValueError:
        return None


def append_row(file: Path, row: Row) -> None:
    """Add a JSON line in one write, so that two processes can share the file, below whatever stands there."""
    with open(file, "a") as lines:
        lines.write(f"\n{json.dumps(row)}\n")


def picture_file(folder: Path, seed: int, arm: str) -> Path:
    """Where the image of a seed and arm lies."""
    return folder / "images" / f"{seed:03d}-{arm}.png"


def load_picture(file: Path) -> Tensor:
    """An image file as (1, H, W, 3) in [0, 1]."""
    with Image.open(file) as picture:
        return pil_to_tensor(picture.convert("RGB")).movedim(0, -1)[None].float() / 255


def make_images(folder: Path, seeds: Sequence[int], sampler: Sampler, deadline: float) -> None:
    """Make what is missing of every arm of every seed, until the deadline (time.monotonic())."""
    work = folder / "samples.jsonl"
    done = {(row["seed"], row["arm"]) for row in read_rows(work)}
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for seed, arm in ((seed, arm) for seed in seeds for arm in ARMS if (seed, arm) not in done):
        if time.monotonic() > deadline:
            return
        begun = time.monotonic()
        picture, row = sampler(seed, arm)
        picture.save(picture_file(folder, seed, arm))
        seconds = round(time.monotonic() - begun, 2)
        append_row(work, {"seed": seed, "arm": arm, "seconds": seconds, **row})
        print(f"seed {seed} {arm}: {seconds:.1f} s", flush=True)


def jacobian_score(core: Any, encoder: Any, x: Tensor, outputs: Tensor) -> float:
    """Sum of the logs of the singular values of outputs @ J at x (1, 3, S, S); outputs (r, d) orthonormal rows.

    With all d outputs it is the exact score; with a fixed random few, a cheap relative of it that no range
    finder has a hand in.
    """
    with core.differentiable(encoder), core.full_precision(x.device):
        rows = core.JacobianOperator(encoder, x[0]).vjp(outputs).double()
    sigma = torch.linalg.eigvalsh(rows @ rows.T).clamp(min=0).sqrt()
    return pack_module("jepa_core.score").log_sum(sigma, encoder.embed_dim, 1e-6).item()


def scored_outputs(kind: str, embed_dim: int) -> Tensor:
    """The rows that a kind of score looks at: all ("exact") or a fixed random few ("projected")."""
    if kind == "exact":
        return torch.eye(embed_dim)
    draw = torch.randn(embed_dim, PROJECTED, generator=torch.Generator().manual_seed(0))
    return torch.linalg.qr(draw).Q.T


def score_images(
    folder: Path, jobs: Sequence[tuple[int, str, str]], sampler: Sampler, deadline: float
) -> None:
    """Do the jobs (seed, arm, "projected" or "exact") that are missing, in this order, until the deadline."""
    work = folder / "scores.jsonl"
    done = {(row["seed"], row["arm"], row["kind"]) for row in read_rows(work)}
    encoder = sampler.encoder.encoder
    for seed, arm, kind in jobs:
        file = picture_file(folder, seed, arm)
        if (seed, arm, kind) in done or not file.exists():
            continue
        if time.monotonic() > deadline:
            return
        begun = time.monotonic()
        x = encoder.preprocess(load_picture(file))
        outputs = scored_outputs(kind, encoder.embed_dim)
        score = jacobian_score(sampler.core, encoder, x, outputs)
        seconds = round(time.monotonic() - begun, 2)
        append_row(work, {"seed": seed, "arm": arm, "kind": kind, "seconds": seconds, kind: score})
        print(f"seed {seed} {arm} {kind}: {score:.2f}, {seconds:.1f} s", flush=True)


# --- the figures --------------------------------------------------------------------------------------------


def differences(values: dict[tuple[int, str], float], arm: str, control: str) -> list[float]:
    """arm minus control over the seeds that have both."""
    seeds = sorted(seed for seed, name in values if name == arm and (seed, control) in values)
    return [values[seed, arm] - values[seed, control] for seed in seeds]


def summarise(values: dict[tuple[int, str], float]) -> Row:
    """Each arm's mean of one measure, and its paired differences to unguided and to random."""
    summary: Row = {}
    for arm in ARMS:
        own = [value for (_, name), value in sorted(values.items()) if name == arm]
        if not own:
            continue
        summary[arm] = mean_and_error(own)
        for control in ("unguided", "random"):
            paired = differences(values, arm, control)
            if arm != control and paired:
                summary[arm][f"minus_{control}"] = mean_and_error(paired)
    return summary


def by_measure(rows: Sequence[Row]) -> dict[str, dict[tuple[int, str], float]]:
    """{measure: {(seed, arm): value}} of rows that hold "seed", "arm" and some measures."""
    found: dict[str, dict[tuple[int, str], float]] = {}
    for row in rows:
        for name in row.keys() - {"seed", "arm"}:
            found.setdefault(name, {})[row["seed"], row["arm"]] = row[name]
    return dict(sorted(found.items()))


def complete_seeds(samples: Sequence[Row]) -> list[int]:
    """Seeds of which every arm was made."""
    made = {(row["seed"], row["arm"]) for row in samples}
    return [seed for seed in sorted({seed for seed, _ in made}) if all((seed, arm) in made for arm in ARMS)]


def judge_images(
    folder: Path, seeds: Sequence[int], encoder: Any, identity: str, classes: Sequence[str]
) -> tuple[list[Row], Row]:
    """The independent measures of every image, and those of held-out real images.

    Raises:
        ValueError: the bank of real images was made with another encoder than `identity`.
    """
    bank, classifier = load_bank(), load_classifier()
    if bank.encoder_name != identity:
        raise ValueError(
            f"research/judges/bank.safetensors was made with {bank.encoder_name}, this is {identity}"
        )

    def embed(images: Tensor) -> Tensor:
        return encoder(encoder.preprocess(images.movedim(1, -1)))

    rows = []
    for seed in seeds:
        images = torch.cat([load_picture(picture_file(folder, seed, arm)) for arm in ARMS]).movedim(-1, 1)
        labels = torch.full((len(ARMS),), classes.index(class_of(seed, classes)))
        found = judge(images, labels, bank, classifier, embed)
        for index, arm in enumerate(ARMS):
            values = {name: round(value[index].item(), 6) for name, value in found.items()}
            rows.append({"seed": seed, "arm": arm, **values})
    return rows, {name: round(value, 5) for name, value in judge_held_out(bank, classifier).items()}


def finish(folder: Path, target: Path, sampler: Sampler, settings: Row) -> None:
    """Aggregate what was made so far into the figures and a sheet to look at."""
    samples = read_rows(folder / "samples.jsonl")
    seeds = complete_seeds(samples)
    if not seeds:
        raise SystemExit(f"{folder} holds no seed with all of its arms yet")
    classes = sampler.demo.demo_classes()
    judged, real = judge_images(folder, seeds, sampler.encoder.encoder, settings["encoder"], classes)
    merged: dict[tuple[int, str], Row] = {(row["seed"], row["arm"]): row for row in judged}
    for row in read_rows(folder / "scores.jsonl"):
        if (row["seed"], row["arm"]) in merged:
            found = {name: round(row[name], 5) for name in SCORES if name in row}
            merged[row["seed"], row["arm"]].update(found)
    rows = list(merged.values())
    record = {
        "settings": {**settings, "seeds": len(seeds)},
        "arms": [line.strip() for line in (__doc__ or "").partition("in turn:")[2].splitlines() if line],
        "seconds_per_image": {
            arm: round(statistics.median(row["seconds"] for row in samples if row["arm"] == arm), 1)
            for arm in ARMS
        },
        "measures": {name: summarise(values) for name, values in by_measure(rows).items()},
        "real_held_out": real,
        "images": rows,
    }
    target.parent.mkdir(exist_ok=True)
    target.write_text(dump(record))
    draw_sheet(folder, seeds[:SHEET_SEEDS], classes).save(target.with_suffix(".png"), optimize=True)
    print(table(record))
    print(f"wrote {target} and {target.with_suffix('.png')}")


def dump(record: Row) -> str:
    """JSON with one line for each image, so that a change of it can be read."""
    images = ",\n  ".join(json.dumps(row) for row in record["images"])
    text = json.dumps({**record, "images": []}, indent=1)
    return text.replace('"images": []', f'"images": [\n  {images}\n ]') + "\n"


def table(record: Row) -> str:
    """The means and paired differences as lines of text."""
    lines = []
    for name, summary in record["measures"].items():
        lines.append(f"{name} (held-out real images: {record['real_held_out'].get(name, '-')})")
        for arm, found in summary.items():
            parts = [f"{found['mean']:.4f} +- {found['standard_error'] or 0:.4f} (n {found['n']})"]
            for control in ("unguided", "random"):
                if f"minus_{control}" in found:
                    paired = found[f"minus_{control}"]
                    parts.append(f"- {control}: {paired['mean']:+.4f} +- {paired['standard_error'] or 0:.4f}")
            lines.append(f"  {arm:9} " + "   ".join(parts))
    return "\n".join(lines)


def draw_sheet(folder: Path, seeds: Sequence[int], classes: Sequence[str]) -> Image.Image:
    """The first seeds, one arm a row."""
    rows = [[Image.open(picture_file(folder, seed, arm)) for seed in seeds] for arm in ARMS]
    return contact_sheet(
        "The same noise, five ways",
        ARMS,
        rows,
        [["" for _ in seeds] for _ in ARMS],
        [f"{class_of(seed, classes)}, seed {seed}" for seed in seeds],
        side=128,
    )


def shard(seeds: Sequence[int], text: str) -> Iterator[int]:
    """The part "i/n" of the seeds."""
    index, count = (int(word) for word in text.split("/"))
    return (seed for seed in seeds if seed % count == index)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="where images and progress are kept")
    parser.add_argument("--seeds", type=int, default=32)
    parser.add_argument("--exact-seeds", type=int, default=0, help="score this many seeds exactly as well")
    parser.add_argument("--exact-arms", nargs="+", choices=ARMS, default=EXACT_ARMS)
    parser.add_argument(
        "--power-iterations", type=int, default=1, help="of the guidance; the node's default is 2"
    )
    parser.add_argument("--interval", type=int, default=1, help="guide every N-th step, as the node's input")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="begin nothing new after this long"
    )
    parser.add_argument("--stages", nargs="+", choices=("sample", "score"), default=("sample", "score"))
    parser.add_argument(
        "--shard", default="0/1", metavar="I/N", help="the part of the seeds that this process does"
    )
    parser.add_argument("--finish", action="store_true", help="only aggregate")
    parser.add_argument("--encoder", type=Path, default=os.environ.get("JEPA_ENCODER"), help="encoder folder")
    parser.add_argument("--output", type=Path, default=ROOT / "research" / "figures" / "evaluation.json")
    options = parser.parse_args()
    deadline = time.monotonic() + 60 * options.minutes

    sampler = Sampler(options.encoder, options.power_iterations, options.interval)
    seeds = list(shard(range(options.seeds), options.shard))
    if not options.finish:
        if "sample" in options.stages:
            make_images(options.folder, seeds, sampler, deadline)
        if "score" in options.stages:
            jobs = [(seed, arm, "projected") for seed in seeds for arm in ARMS]
            exact = [seed for seed in seeds if seed < options.exact_seeds]
            jobs += [(seed, arm, "exact") for seed in exact for arm in options.exact_arms]
            score_images(options.folder, jobs, sampler, deadline)
    if options.finish or options.shard == "0/1":
        settings = {
            "steps": STEPS,
            "cfg": CFG,
            "sampler": SAMPLER,
            "scheduler": SCHEDULER,
            "power_iterations": options.power_iterations,
            "guidance": repr(sampler.schedule()),
            "encoder": encoder_identity(options.encoder),
            "generator": hashlib.sha256(sampler.demo.WEIGHTS.read_bytes()).hexdigest(),
            "torch": torch.__version__,
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        }
        finish(options.folder, options.output, sampler, settings)


if __name__ == "__main__":
    main()
