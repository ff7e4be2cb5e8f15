"""What does each strength do to the pictures of the demo generator?

    python dev.py run research/effects/strengths.py --folder WORK [--seeds N] [--strengths S ...] [--inputs NAME=VALUE ...]

All else is the node's default, with 14 Euler steps and CFG 2. The noise of a seed is the same in every column. Captions
give the projected score under the encoder that guides (lower is rarer) and, as read by a classifier that takes no part in
guidance, how rare the picture is in the world and what changed from strength 0. WORK gets, for each gradient path, a sheet
for each class and one of the first seed of each. Resumable: run the same command again.
"""

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from research.harness import program
from research.harness.images import Experiment, Sampler
from research.harness.pack_api import inputs_of, preset_inputs
from research.harness.program import Row, markdown
from research.harness.sampling import STEPS
from research.harness.sheet import contact_sheet
from research.judges.classifier import Classifier, load_classifier
from research.judges.measures import read
from research.judges.words import changes, one_in
from research.world.labels import CLASSES

STRENGTHS = (-1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 4.0)
PATHS = ("through denoiser", "denoiser constant")


def arm_of(path: str, strength: float) -> str:
    """The name of an arm; without a shift the path does not matter."""
    return f"{path} {strength:g}" if strength else "0"


def model_of(sampler: Sampler, path: str, strength: float, inputs: Row) -> Any:
    """The demo generator's MODEL as the node guides it."""
    return sampler.guided(preset_inputs(changes=inputs | {"gradient_path": path, "strength": strength}))


def row_of(experiment: Experiment, classifier: Classifier, path: str, strength: float, seed: int) -> Row:
    """The figures of an image."""
    arm, name = arm_of(path, strength), experiment.sampler.class_of(seed)
    unguided, picture = experiment.picture(seed, "0"), experiment.picture(seed, arm)
    labels = torch.full((2,), CLASSES.index(name) + 1)
    found = read(torch.stack([unguided, picture]).movedim(-1, 1), labels, classifier)
    row: Row = {"path": path, "seed": seed, "class": name, "strength": strength}
    row |= {"score": round(experiment.scores()[seed, arm], 3), "tail": round(found.tail[1].item(), 6)}
    row["recognised"] = CLASSES[int(found.named[1]) - 1] == name
    row["changes"] = changes(*found.attributes)
    row["pixel_change"] = round((picture - unguided).abs().mean().item() * 255, 3)
    return row | {"seconds": experiment.seconds()[seed, arm]}


def caption(row: Row) -> str:
    """The text below a picture."""
    named = [] if row["recognised"] else ["not recognised"]
    return "\n".join([f"score {row['score']:.1f}, {one_in(row['tail'])}", *named, *row["changes"][:3]])


def draw(experiment: Experiment, path: str, rows: Sequence[Sequence[Row]]) -> Image.Image:
    """A sheet of a path: a row for each seed, a column for each strength."""
    pictures = [
        [Image.open(experiment.file(one["seed"], arm_of(path, one["strength"]))) for one in row]
        for row in rows
    ]
    return contact_sheet(
        f"Strength from left to right, {path}",
        [f"{row[0]['class']},\nseed {row[0]['seed']}" for row in rows],
        pictures,
        [[caption(one) for one in row] for row in rows],
        [f"{one['strength']:+g}" for one in rows[0]],
        notes=[
            "score: JEPA score of 48 fixed outputs under the encoder that guides; lower is rarer. "
            "Then: of all pictures of the class in the demo world, how many are as rare or rarer."
        ],
    )


def means(rows: Sequence[Row]) -> dict[str, Row]:
    """Of each strength, over seeds: {score, its change from strength 0, pixel change, median tail, shares}."""
    found: dict[str, Row] = {}
    unguided = {row["seed"]: row["tail"] for row in rows if not row["strength"]}
    for strength in dict.fromkeys(row["strength"] for row in rows):
        some = [row for row in rows if row["strength"] == strength]
        names = ("score", "pixel_change", "recognised", "seconds")
        one = {name: statistics.fmean(row[name] for row in some) for name in names}
        one["tail"] = statistics.median(row["tail"] for row in some)
        if unguided:
            one["rarer"] = statistics.fmean(row["tail"] < unguided[row["seed"]] for row in some)
            one["commoner"] = statistics.fmean(row["tail"] > unguided[row["seed"]] for row in some)
        found[f"{strength:g}"] = {name: round(value, 4) for name, value in one.items()}
    for one in found.values() if "0" in found else ():
        one["score_change"] = round(one["score"] - found["0"]["score"], 3)
    return found


def table(figures: Row) -> str:
    """Means over seeds, for each path and strength."""
    columns = {
        "path": "{path}",
        "strength": "{strength}",
        "score": "{score:.1f}",
        "median share as rare": "{tail:.2f}",
        "rarer in the world": "{rarer:.0%}",
        "more typical": "{commoner:.0%}",
        "recognised": "{recognised:.0%}",
        "change of a pixel": "{pixel_change:.1f}",
    }
    rows = [
        {"path": path, "strength": strength, **one}
        for path, found in figures["means"].items()
        for strength, one in found.items()
    ]
    return markdown(columns, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = program.parser(__file__, __doc__, program.FIGURES / "strengths.json", folder=True)
    parser.add_argument("--seeds", type=int, default=48, help="the classes in turn")
    parser.add_argument("--strengths", type=float, nargs="+", default=STRENGTHS)
    parser.add_argument("--paths", nargs="+", choices=PATHS, default=PATHS)
    parser.add_argument("--steps", type=int, default=STEPS, help="of a sampling")
    parser.add_argument("--image-size", type=int, default=112, help="at which the encoder sees pictures")
    parser.add_argument("--inputs", nargs="*", default=(), help="other inputs of the node, NAME=VALUE")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error("--seeds must be at least 1")
    inputs = inputs_of(options.inputs)
    sampler, classifier = Sampler(options.encoder, options.steps, options.image_size), load_classifier()
    arms = {"0": lambda _: sampler.model} | {
        arm_of(path, strength): lambda _, p=path, s=strength: model_of(sampler, p, s, inputs)
        for path in options.paths
        for strength in options.strengths
        if strength
    }
    experiment = Experiment(options.folder, sampler, arms)
    seeds = range(options.seeds)
    used = preset_inputs(changes=inputs)
    used = {name: value for name, value in used.items() if name not in ("strength", "gradient_path")}
    experiment.check(sampler.settings() | {"inputs": used})
    experiment.make(seeds)
    experiment.score(seeds)
    settings = program.settings(parser, options, **sampler.settings(), inputs=used)
    record: Row = {"settings": settings, "means": {}, "images": []}
    for path in options.paths:
        rows = [[row_of(experiment, classifier, path, s, seed) for s in options.strengths] for seed in seeds]
        record["images"] += [one for row in rows for one in row]
        record["means"][path] = means([one for row in rows for one in row])
        sheets = {name: [row for row in rows if row[0]["class"] == name] for name in sampler.classes}
        sheets["each"] = rows[: len(sampler.classes)]
        for name, some in sheets.items():
            if some:
                file = options.folder / f"{path} {name}.png".replace(" ", "-")
                draw(experiment, path, some).save(file)
    program.write(options.out, record, table)


if __name__ == "__main__":
    main()
