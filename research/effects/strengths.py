"""What does each strength do to the pictures of the demo generator?

    python dev.py run research/effects/strengths.py --folder WORK [--seeds N] [--strengths S ...]

All else is the node's default, with 20 Euler steps and CFG 2. The noise of a seed is the same in every column. A caption
gives the picture's projected score under the encoder that guides (lower is rarer) and the mean absolute change of a
pixel from strength 0, of 255. WORK gets a sheet for each gradient path. Resumable: run the same command again.
"""

import statistics
from collections.abc import Sequence
from typing import Any

from PIL import Image

from research.harness import program
from research.harness.images import Experiment, Sampler
from research.harness.pack_api import preset_inputs
from research.harness.program import Row, markdown
from research.harness.sheet import contact_sheet

STRENGTHS = (-2.0, -1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
PATHS = ("denoiser constant", "through denoiser")


def arm_of(path: str, strength: float) -> str:
    """The name of an arm; without a shift the path does not matter."""
    return f"{path} {strength:g}" if strength else "0"


def model_of(sampler: Sampler, path: str, strength: float) -> Any:
    """The demo generator's MODEL as the node at its defaults guides it, or the stock one at strength 0."""
    if strength == 0:
        return sampler.model
    return sampler.guided(preset_inputs(changes={"gradient_path": path, "strength": strength}))


def row_of(experiment: Experiment, path: str, strength: float, seed: int) -> Row:
    """The figures of an image."""
    arm = arm_of(path, strength)
    change = (experiment.picture(seed, arm) - experiment.picture(seed, "0")).abs().mean().item()
    row: Row = {"path": path, "seed": seed, "class": experiment.sampler.class_of(seed), "strength": strength}
    row |= {"score": round(experiment.scores()[seed, arm], 3), "pixel_change": round(change * 255, 3)}
    return row | {"seconds": experiment.seconds()[seed, arm]}


def draw(experiment: Experiment, path: str, rows: Sequence[Sequence[Row]]) -> Image.Image:
    """The sheet of a path: a row for each seed, a column for each strength."""
    pictures = [
        [Image.open(experiment.file(one["seed"], arm_of(path, one["strength"]))) for one in row]
        for row in rows
    ]
    return contact_sheet(
        f"Strength from left to right, {path}",
        [f"{row[0]['class']}\nseed {row[0]['seed']}" for row in rows],
        pictures,
        [[f"score {one['score']:.1f}\nchange {one['pixel_change']:.1f}" for one in row] for row in rows],
        [f"{one['strength']:+g}" for one in rows[0]],
        side=128,
        notes=[
            "score: JEPA score of 48 fixed outputs under the encoder that guides; lower is rarer. "
            "change: mean absolute change of a pixel from strength 0, of 255."
        ],
    )


def means(rows: Sequence[Row]) -> dict[str, Row]:
    """{strength: mean score, its change from strength 0, mean pixel change} over seeds."""
    found: dict[str, Row] = {}
    for strength in dict.fromkeys(row["strength"] for row in rows):
        some = [row for row in rows if row["strength"] == strength]
        one = {name: statistics.fmean(row[name] for row in some) for name in ("score", "pixel_change")}
        found[f"{strength:g}"] = {name: round(value, 3) for name, value in one.items()}
    for one in found.values() if "0" in found else ():
        one["score_change"] = round(one["score"] - found["0"]["score"], 3)
    return found


def table(figures: Row) -> str:
    """Means over seeds, for each path and strength."""
    columns = {
        "path": "{path}",
        "strength": "{strength}",
        "score": "{score}",
        "change of a pixel": "{pixel_change}",
    }
    rows = [
        {"path": path, "strength": strength, **one}
        for path, found in figures["means"].items()
        for strength, one in found.items()
    ]
    return markdown(columns, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = program.parser(__file__, __doc__, program.FIGURES / "strengths.json", folder=True)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--strengths", type=float, nargs="+", default=STRENGTHS)
    parser.add_argument("--paths", nargs="+", choices=PATHS, default=PATHS)
    parser.add_argument("--steps", type=int, default=20, help="of a sampling")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error("--seeds must be at least 1")
    sampler = Sampler(options.encoder, options.steps)
    arms = {"0": lambda _: sampler.model} | {
        arm_of(path, strength): lambda _, p=path, s=strength: model_of(sampler, p, s)
        for path in options.paths
        for strength in options.strengths
        if strength
    }
    experiment = Experiment(options.folder, sampler, arms)
    seeds = range(options.seeds)
    experiment.make(seeds)
    experiment.score(seeds)
    inputs = {
        name: value for name, value in preset_inputs().items() if name not in ("strength", "gradient_path")
    }
    settings = program.settings(parser, options, **sampler.settings(), inputs=inputs)
    record: Row = {"settings": settings, "means": {}, "images": []}
    for path in options.paths:
        rows = [[row_of(experiment, path, s, seed) for s in options.strengths] for seed in seeds]
        record["images"] += [one for row in rows for one in row]
        record["means"][path] = means([one for row in rows for one in row])
        file = options.folder / f"strengths-{path.replace(' ', '-')}.png"
        draw(experiment, path, rows).save(file, optimize=True)
    program.write(options.out, record, table)


if __name__ == "__main__":
    main()
