"""Does guidance make images rarer, by measures other than the score that it descends?

    python dev.py run research/effects/evaluation.py --folder WORK             make, score and judge images
    python dev.py run research/effects/evaluation.py --folder WORK --finish    only write the figures of what is there

Five arms (ARMS) from the same noise, with 14 Euler steps, CFG 2 and otherwise the node's defaults, classes in turn.
Resumable: run the same command again.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from research.harness import program
from research.harness.images import UNGUIDED, Experiment, Sampler
from research.harness.pack_api import ScoreGradient, inputs_of, preset_inputs
from research.harness.program import Row, markdown
from research.harness.sheet import contact_sheet
from research.harness.summary import Values, complete_seeds, differences, mean_and_error, plus_minus
from research.judges.classifier import load_classifier
from research.judges.measures import judge_held_out, load_bank

ARMS: dict[str, Row] = {
    UNGUIDED: {},
    "guided": {"gradient_path": "denoiser constant"},
    "reversed": {"gradient_path": "denoiser constant"},
    "random": {"gradient_path": "denoiser constant"},
    "through": {"gradient_path": "through denoiser"},
}
MEANINGS = {
    UNGUIDED: "the stock sampler",
    "guided": "guided with the inputs of the settings, denoiser held constant",
    "reversed": "the same with the negative of the strength",
    "random": "a random direction with the same largest entry, at the same steps",
    "through": "guided through the denoiser",
}
# As the table says it, in its order.
LABELS = {
    UNGUIDED: "unguided",
    "guided": "**guided**, denoiser constant",
    "through": "**guided**, through the denoiser",
    "random": "random direction, same steps and largest entry",
    "reversed": "**negative strength**, denoiser constant",
}
CONTROLS = (UNGUIDED, "random")
SHEET_SEEDS = 8


def random_gradient(seed: int) -> Callable[..., Any]:
    """A gradient function for apply_guidance that returns noise; normalised, it has the same maximum."""
    generator = torch.Generator().manual_seed(seed)

    def gradient(denoise: object, x: Tensor, sigma: Tensor, base_model: object) -> Any:
        noise = torch.randn(x.shape, generator=generator).to(x)
        return ScoreGradient(torch.zeros(len(x), dtype=torch.float64), noise)

    return gradient


def model_of(sampler: Sampler, arm: str, changes: Row, seed: int) -> Any:
    """The MODEL of an arm; `changes` of the node's inputs hold in every arm."""
    if arm == UNGUIDED:
        return sampler.model
    inputs = preset_inputs(changes=changes | ARMS[arm])
    if arm == "reversed":
        inputs |= {"strength": -inputs["strength"]}
    return sampler.guided(inputs, gradient=random_gradient(seed) if arm == "random" else None)


def summarise(values: Values) -> Row:
    """Each arm's mean of one measure, and its paired differences from the controls."""
    summary: Row = {}
    for arm in ARMS:
        own = [value for (_, name), value in sorted(values.items()) if name == arm]
        if own:
            summary[arm] = mean_and_error(own)
            paired = {control: differences(values, arm, control) for control in CONTROLS if control != arm}
            summary[arm] |= {f"minus_{name}": mean_and_error(some) for name, some in paired.items() if some}
    return summary


def finish(experiment: Experiment, settings: Row, out: Path) -> None:
    """Aggregate what was made so far into the figures and a sheet to look at."""
    scores = experiment.scores()
    seeds = complete_seeds(scores, list(ARMS))
    if not seeds:
        raise SystemExit(f"{experiment.folder} holds no seed with all of its arms yet")
    rows = experiment.judged(seeds)
    for row in rows:
        row["projected"] = round(scores[row["seed"], row["arm"]], 5)
    names = sorted(rows[0].keys() - {"seed", "arm"})
    held_out = judge_held_out(load_bank(), load_classifier())
    record = {
        "settings": settings | {"seeds": len(seeds)},
        "arms": [f"{arm}: {what}" for arm, what in MEANINGS.items()],
        "seconds_per_image": experiment.median_seconds(),
        "measures": {
            name: summarise({(row["seed"], row["arm"]): row[name] for row in rows}) for name in names
        },
        "real_held_out": {name: round(value, 5) for name, value in held_out.items()},
        "images": rows,
    }
    program.write(out, record, table)
    shown = seeds[:SHEET_SEEDS]
    pictures = [[Image.open(experiment.file(seed, arm)) for seed in shown] for arm in ARMS]
    columns = [f"{experiment.sampler.class_of(seed)}, seed {seed}" for seed in shown]
    captions = [[""] * len(shown)] * len(ARMS)
    sheet = contact_sheet("The same noise, five ways", list(ARMS), pictures, captions, columns, side=128)
    sheet.save(out.with_suffix(".png"), optimize=True)


def table(figures: Row) -> str:
    """The table of docs/results.md: a row for each arm, a column for each measure."""
    outputs = figures["settings"]["projection"]
    columns = {
        "arm": "{arm}",
        f"JEPA score of {outputs} fixed outputs": "{projected}",
        "change from unguided": "{change}",
        "distance, guide's embedding": "{rarity_encoder}",
        "distance, classifier's features": "{rarity_classifier}",
        "class recognised": "{recognised:.0%}",
        "rarity in the world, nats": "{rarity_world}",
    }
    measures = figures["measures"]
    distances = ("rarity_encoder", "rarity_classifier", "rarity_world")
    rows = []
    for arm, label in LABELS.items():
        score = measures["projected"][arm]
        row: Row = {"arm": label, "projected": plus_minus(score, 1)}
        if "minus_unguided" in score:
            sign = "+" if score["minus_unguided"]["mean"] > 0 else ""
            row["change"] = sign + plus_minus(score["minus_unguided"], 1)
        row |= {name: plus_minus(measures[name][arm], 3) for name in distances}
        rows.append(row | {"recognised": measures["recognised"][arm]["mean"]})
    return markdown(columns, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = program.parser(__file__, __doc__, program.FIGURES / "evaluation.json", folder=True)
    parser.add_argument("--seeds", type=int, default=48)
    parser.add_argument("--image-size", type=int, default=112, help="at which the encoder sees pictures")
    parser.add_argument("--inputs", nargs="*", default=(), help="other inputs of the node, NAME=VALUE")
    parser.add_argument("--finish", action="store_true", help="only aggregate")
    options = parser.parse_args(arguments)
    sampler, changes = Sampler(options.encoder, image_size=options.image_size), inputs_of(options.inputs)
    arms = {arm: lambda seed, arm=arm: model_of(sampler, arm, changes, seed) for arm in ARMS}
    experiment = Experiment(options.folder, sampler, arms)
    settings = sampler.settings() | {"inputs": preset_inputs(changes=changes | ARMS["guided"])}
    experiment.check(settings)
    if not options.finish:
        experiment.make(range(options.seeds))
        experiment.score(range(options.seeds))
    finish(experiment, program.settings(parser, options, **settings), options.out)


if __name__ == "__main__":
    main()
