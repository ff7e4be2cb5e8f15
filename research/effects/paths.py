"""How much of the faithful preset's effect does each cheaper path to the image keep, and for how much time?

    python dev.py run research/effects/paths.py --folder WORK [--seeds N]

The demo generator, from the same noise in every arm: ten Euler steps, CFG 2, the node's default schedule, strength 0.5,
classes in turn. Images get projected scores; seconds are those of the sampling alone.
Figures are of the seeds that have all arms. Resumable: run the same command again. This generator's decoder is small at
any size; research/figures/step.json has the cost of decoders.

Conclusion, on an earlier generator of 64 pixels: tracking in half precision and one call of the denoiser keep all of the
faithful change for a quarter of its time; holding the denoiser constant keeps three quarters.
"""

import statistics
from collections.abc import Sequence
from typing import Any

from research.harness import program
from research.harness.images import UNGUIDED, Experiment, Sampler
from research.harness.pack_api import preset_inputs
from research.harness.program import Row, markdown
from research.harness.summary import Values, complete_seeds, differences, mean_and_error, plus_minus, share

FAITHFUL = "faithful"
HALF: Row = {"range_finder": "tracked in half precision"}
CONSTANT: Row = {"gradient_path": "denoiser constant"}
# Arm -> a preset, or "custom", and inputs of the node in place of the preset's.
ARMS: dict[str, tuple[str, Row]] = {
    FAITHFUL: (FAITHFUL, {}),
    "through-half": ("custom", {"power_iterations": 1} | HALF),
    "through-half-one-call": ("custom", {"power_iterations": 1, "denoiser_calls": "one"} | HALF),
    "constant": ("custom", {"power_iterations": 1} | CONSTANT),
    "constant-half": ("custom", {"power_iterations": 1} | CONSTANT | HALF),
    "subtle": ("subtle", {}),
    "fast": ("fast", {}),
}
ALL_ARMS = (UNGUIDED, *ARMS)


def model_of(sampler: Sampler, arm: str) -> Any:
    """The stock MODEL, or guided as the node guides it with the arm's inputs."""
    return sampler.model if arm == UNGUIDED else sampler.guided(preset_inputs(*ARMS[arm]))


def summarise(seconds: Values, scores: Values, arms: Sequence[str]) -> dict[str, Row]:
    """What each arm changes beside the unguided one, over the seeds that have a score of every arm.

    Args:
        arms: with UNGUIDED and FAITHFUL.

    Returns:
        For each arm: change (mean and standard error of its score minus the unguided one's), seconds (median),
        extra_seconds (median of the differences), share (of the faithful arm's mean change, with the
        jackknife's standard error), change_per_extra_second. Empty where no seed is complete.
    """
    seeds = complete_seeds(scores, arms)
    if not seeds:
        return {}
    scores, seconds = (
        {key: value for key, value in some.items() if key[0] in seeds} for some in (scores, seconds)
    )
    found = {}
    for arm in arms:
        median = statistics.median(value for (_, name), value in seconds.items() if name == arm)
        row: Row = {"seconds": round(median, 2)}
        if arm != UNGUIDED:
            change = differences(scores, arm, UNGUIDED)
            extra = statistics.median(differences(seconds, arm, UNGUIDED))
            row["change"] = mean_and_error(change)
            row["extra_seconds"] = round(extra, 2)
            row["share"] = share(change, differences(scores, FAITHFUL, UNGUIDED))
            row["change_per_extra_second"] = round(statistics.fmean(change) / extra, 4)
        found[arm] = row
    return found


def table(figures: Row) -> str:
    """What each path changes, for how much time."""
    columns = {
        "path": "{arm}",
        "change of score": "{change}",
        "share of faithful's": "{share}",
        "extra s an image": "{extra_seconds:.1f}",
        "change a second": "{change_per_extra_second:.2f}",
    }
    rows = [
        {"arm": arm} | one | {"change": plus_minus(one["change"], 1), "share": plus_minus(one["share"], 2)}
        for arm, one in figures["measures"]["projected"]["arms"].items()
        if arm != UNGUIDED
    ]
    return markdown(columns, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = program.parser(__file__, __doc__, program.FIGURES / "paths.json", folder=True)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10, help="of a sampling")
    parser.add_argument(
        "--arms", nargs="+", choices=ALL_ARMS, default=ALL_ARMS, help="unguided and faithful always run"
    )
    options = parser.parse_args(arguments)
    arms = [arm for arm in ALL_ARMS if arm in {UNGUIDED, FAITHFUL, *options.arms}]
    sampler = Sampler(options.encoder, options.steps)
    makers = {arm: lambda _, arm=arm: model_of(sampler, arm) for arm in arms}
    experiment = Experiment(options.folder, sampler, makers)
    seeds = range(options.seeds)
    experiment.make(seeds)
    experiment.score(seeds)
    scores = experiment.scores()
    summary = summarise(experiment.seconds(), scores, arms)
    inputs = {arm: preset_inputs(*ARMS[arm]) for arm in arms if arm in ARMS}
    settings = program.settings(parser, options, **sampler.settings(), arms=inputs)
    measures = {"projected": {"seeds": complete_seeds(scores, arms), "arms": summary}}
    record = {"settings": settings, "measures": measures}
    program.write(options.out, record, table)


if __name__ == "__main__":
    main()
