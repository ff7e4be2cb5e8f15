"""How fast and how exact is each way to the guided gradient, along real sampling trajectories?

    python dev.py run research/costs/gradient.py --folder WORK

Clean estimates of the demo generator, sampled with 4, 20 and 50 Euler steps, at the steps that the default
schedule guides; and a harder path, a photo coming into focus. Each arm sees every image in order, as guidance shows
them; the arms that start cold, the paper's among them, see some of them. "floor" is a gradient from random left singular
vectors, whose cosine with the exact one is about 0.9 already. Exact gradients and trajectories are kept in WORK. Two
hours on two cores.

Conclusion of the figures, which are from when half precision rounded values too: tracked in half precision ("subtle", and
so "balanced" and "wild") is the fastest arm with a median cosine above 0.994, though rounding leaves single steps at
0.95; tracked in full precision keeps 0.995 at its worst step. docs/cost.md says what half precision of derivatives alone
keeps.
"""

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from skimage import data
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from jepa_core import Encoder, JacobianOperator, RarityGradient, differentiable, full_precision, load_encoder
from jepa_core.range_finder import project, ritz_triplets
from jepa_core.score import random_outputs
from research.harness import program
from research.harness.images import Sampler
from research.harness.naive import naive_gradient
from research.harness.pack_api import Schedule
from research.harness.program import Row, kept, markdown
from research.harness.reference import Reference, cosine, references
from research.harness.timing import seconds_of, timed

# (steps, seeds): three classes where runs are short. The class of seed 2 moves most.
RUNS = ((4, (0, 1, 2)), (20, (2,)), (50, (2,)))
HALF = {"tolerance": 0.35, "half": True}
ARMS: dict[str, dict[str, Any]] = {
    "cold, full precision (faithful)": {"tracked": False},
    "tracked, full precision (custom)": {},
    "tracked, half precision (subtle)": HALF,
    "tracked, half precision (fast)": HALF | {"oversample": 1, "power_iterations": 1},
}
PAPER = "the paper's algorithm"
FLOOR = "floor: random left singular vectors"
FOCUS = "photo-focus-0"
# The arms that start afresh each time are measured at every sixth guided step.
SPARSE = (PAPER, "cold, full precision (faithful)", FLOOR)
EVERY = 6


class Measured(NamedTuple):
    """One gradient: which, how long it took, what it is worth. Residuals are of the tracking range finder."""

    trajectory: str
    place: int
    arm: str
    seconds: float
    cosine: float
    calls: int
    residual: float | None


def measure(
    encoder: Encoder, name: str, images: Sequence[Tensor], exact: Mapping[str, Reference]
) -> list[Measured]:
    """Show one trajectory's preprocessed images (3, S, S) to every arm, arms in turn at each image."""
    arms = {arm: RarityGradient(**settings) for arm, settings in ARMS.items()}
    rows = []
    for place, image in enumerate(images):
        for arm in (PAPER, *arms, FLOOR):
            if arm in SPARSE and place % EVERY:
                continue
            calls, residual = 0, None
            if arm == PAPER:
                found, seconds = timed(partial(naive_gradient, encoder, image))
                grad, calls = found.grad, found.calls.sequential
            elif arm == FLOOR:
                grad, seconds = timed(partial(from_random_vectors, encoder, image))
            else:
                found, seconds = timed(partial(arms[arm], encoder, image[None]))
                grad, calls, residual = found.grad[0], found.encoder_calls, found.residual.max().item()
            near = cosine(grad, exact[f"{name}-{place:02d}"].grad)
            rows.append(Measured(name, place, arm, seconds, near, calls, residual))
            print(f"{name} {place} {arm}: {seconds:.2f} s, cosine {near:.4f}", flush=True)
    return rows


def from_random_vectors(encoder: Encoder, image: Tensor) -> Tensor:
    """The closed form with 9 random orthonormal u_i in place of the singular vectors, and J^T u_i for v_i."""
    with differentiable(encoder), full_precision(image.device):
        jacobian = JacobianOperator(encoder, image)
        u, s, v = ritz_triplets(project(jacobian, random_outputs(9, encoder.embed_dim)), 9)
        return jacobian.curvature(v)[1]((u / s[:, None]).to(v))


def focus(encoder: Encoder, steps: int = 10) -> list[Tensor]:
    """A photo (3, S, S), preprocessed, coming into focus in equal steps from a Gaussian blur of 24 pixels."""
    photo = torch.from_numpy(data.astronaut()).movedim(-1, 0).float() / 255
    blurred = gaussian_blur(photo, [145, 145], [24.0, 24.0])
    images = [blurred + (photo - blurred) * step / steps for step in range(1, steps + 1)]
    return list(encoder.preprocess(torch.stack(images).movedim(1, -1)))


def under_autocast(encoder: Encoder, image: Tensor, truth: Reference) -> dict[str, dict[str, float]]:
    """Cosine with the exact gradient when the host is in half precision: the paper's algorithm and two arms.

    Beside it the share of the true top left subspace that the paper's range finder captures.
    """
    found: dict[str, dict[str, float]] = {}
    for dtype in (torch.float16, torch.bfloat16):
        paper = naive_gradient(encoder, image, half=dtype)
        share = (paper.basis.T.double() @ truth.u.T).square().sum().item() / len(truth.u)
        figures = {PAPER: cosine(paper.grad, truth.grad), "share of the subspace, " + PAPER: share}
        with torch.autocast(image.device.type, dtype):
            for arm in list(ARMS)[1:3]:
                figures[arm] = cosine(RarityGradient(**ARMS[arm])(encoder, image[None]).grad[0], truth.grad)
        found[str(dtype).removeprefix("torch.")] = {key: round(value, 5) for key, value in figures.items()}
    return found


def summary(rows: Sequence[Measured]) -> dict[str, dict[str, dict[str, float]]]:
    """{run or "all": {arm: figures}}; ratios are of mean seconds, the paper's over the arm's.

    "all" is of sampling alone; the photo is a separate test.
    """
    kinds = dict.fromkeys(row.trajectory.split("-")[1] for row in rows)
    table = {kind: [row for row in rows if row.trajectory.split("-")[1] == kind] for kind in kinds} | {
        "all": [row for row in rows if row.trajectory != FOCUS]
    }
    arms = (PAPER, *ARMS, FLOOR)
    return {kind: {arm: figures_of(some, arm) for arm in arms} for kind, some in table.items()}


def figures_of(rows: Sequence[Measured], arm: str) -> dict[str, float]:
    """Seconds, accuracy and calls of an arm."""

    def mean(name: str, some: Sequence[Measured]) -> float:
        return statistics.fmean(getattr(row, name) for row in some)

    paper = mean("seconds", [row for row in rows if row.arm == PAPER])
    own = [row for row in rows if row.arm == arm]
    cosines = sorted(row.cosine for row in own)
    return {
        "gradients": len(own),
        "seconds": round(mean("seconds", own), 3),
        "ratio": round(paper / mean("seconds", own), 2),
        "ratio_after_first_step": round(paper / mean("seconds", [row for row in own if row.place] or own), 2),
        "cosine_median": round(statistics.median(cosines), 5),
        "cosine_worst": round(cosines[0], 5),
        "calls_mean": round(mean("calls", own), 2),
        "calls_most": max(row.calls for row in own),
    }


def batches(encoder: Encoder, image: Tensor, sizes: Sequence[int] = (1, 2, 4, 8)) -> dict[str, float]:
    """Seconds of one warm gradient per image, for batches of these sizes (subtle)."""
    found = {}
    for size in sizes:
        gradient = RarityGradient(**ARMS["tracked, half precision (subtle)"])
        warm = seconds_of(partial(gradient, encoder, image.expand(size, -1, -1, -1)), 2)
        found[str(size)] = round(warm / size, 3)
    return found


def collect(folder: Path, encoder_folder: Path, encoder: Encoder) -> Mapping[str, list[Tensor]]:
    """Preprocessed images (3, S, S) at the guided steps of every trajectory, made where WORK lacks them."""
    found = {}
    for steps, seeds in RUNS:
        sampler = Sampler(encoder_folder, steps)
        for seed in seeds:
            name = f"unguided-s{steps}-{seed}"
            file = folder / "trajectories" / f"{name}.safetensors"
            images = kept(file, partial(sampler.estimates, seed))["images"]
            found[name] = list(encoder.preprocess(images[Schedule().guided_steps(steps)]))
    found[FOCUS] = focus(encoder)
    return found


def table(figures: Row) -> str:
    """Time, accuracy and calls of the guided gradient, over all trajectories and for each length."""
    kinds = [kind for kind in figures["table"] if kind != "all"]
    rows = []
    for arm, one in figures["table"]["all"].items():
        worst = [f"{figures['table'][kind][arm]['cosine_worst']:.3f}" for kind in kinds]
        rows.append({"arm": arm, "worst": ", ".join(worst), **one})
    columns = {
        "gradient": "{arm}",
        "s": "{seconds:.1f}",
        "times faster": "{ratio:.1f}",
        "cosine, median / worst": "{cosine_median:.4f} / {cosine_worst:.4f}",
        "worst at " + ", ".join(kinds): "{worst}",
        "calls, mean / most": "{calls_mean:.1f} / {calls_most}",
    }
    return markdown(columns, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = program.parser(__file__, __doc__, program.FIGURES / "gradient.json", folder=True)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the processor")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    encoder = load_encoder(options.encoder)
    images = collect(options.folder, options.encoder, encoder)
    named = {
        f"{name}-{place:02d}": image for name, part in images.items() for place, image in enumerate(part)
    }
    exact = references(options.folder / f"references-{options.encoder.name}", encoder, named)
    rows = [row for name, part in images.items() for row in measure(encoder, name, part, exact)]
    hardest = next(name for name in images if "-s20-" in name)
    record = {
        "settings": program.settings(parser, options),
        "table": summary(rows),
        "host_in_half_precision": under_autocast(encoder, images[hardest][3], exact[f"{hardest}-03"]),
        "seconds_per_image_by_batch": batches(encoder, images[hardest][3]),
        "rows": [row._asdict() for row in rows],
    }
    program.write(options.out, record, table)


if __name__ == "__main__":
    main()
