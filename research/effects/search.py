"""Does search find rarer pictures than guidance or more seeds in the same time, and how early can it look?

    python dev.py run research/effects/search.py --folder WORK --batches 1 --scored 3

Batches of 16 candidates of a class of the demo world, of which 4 are kept. Best of N needs no pictures of its own: it
chooses among the stock ones. Scores take most of the time, so only the first batches are searched by them. Seconds are
those of the processor, on one thread. The judge and the reference are those of novelty.py.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file

from research.effects import novelty
from research.harness import program
from research.harness.batches import PICTURES, Study
from research.harness.images import UNGUIDED, Sampler
from research.harness.pack_api import NOVELTY, SCORE
from research.harness.program import Row, markdown
from research.harness.search_figures import MEASURES, Figures, Unit
from research.harness.searches import KEPT, SHARES, Arm, Searches
from research.harness.sheet import contact_sheet
from research.judges.effects import REAL, Judge
from research.world.data import load_pictures

LOOKS = (0.4, 0.7)
EARLY = (0.3,)  # leaves every guided step to the survivors
SCHEDULES = ((), (0.7,), (0.5,), (0.3,), (0.5, 0.8), LOOKS, (0.3, 0.7), (0.3, 0.6), (0.2, 0.5))
HEADINGS = {NOVELTY: NOVELTY, SCORE: SCORE} | novelty.HEADINGS


def _novelty(strength: float) -> Row:
    return {"strength": strength, "criterion": "novelty"}


ARMS: dict[str, dict[str, Arm]] = {
    NOVELTY: {
        UNGUIDED: Arm(),
        "novelty: search 16": Arm(NOVELTY, 16, LOOKS),
        "novelty: guidance 0.5": Arm(inputs=_novelty(0.5)),
        "novelty: guidance 1": Arm(inputs=_novelty(1.0)),
        "novelty: search 16, then guidance 1": Arm(NOVELTY, 16, LOOKS, _novelty(1.0)),
        "novelty: search 16 with one early look, then guidance 1": Arm(NOVELTY, 16, EARLY, _novelty(1.0)),
        "novelty: search 64": Arm(NOVELTY, 64, LOOKS),
    },
    SCORE: {
        "score: search 16": Arm(SCORE, 16, LOOKS),
        "score: guidance 1": Arm(inputs={"strength": 1.0}),
        "score: search 16 with one early look, then guidance 1": Arm(SCORE, 16, EARLY, {"strength": 1.0}),
    },
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = program.parser(__file__, __doc__, program.FIGURES / "search.json", folder=True)
    parser.add_argument("--batches", type=int, default=1, help="of 16 candidates, for each class")
    parser.add_argument(
        "--scored", type=int, default=3, help="batches of the classes in turn, searched by score too"
    )
    parser.add_argument("--image-size", type=int, default=112, help="at which the encoder sees pictures")
    parser.add_argument("--world", type=Path, help="keeps the world's pictures; WORK by default")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    sampler = Sampler(options.encoder, image_size=options.image_size)
    place = options.world or options.folder
    world = load_pictures(place, PICTURES * len(sampler.classes), 2 * REAL, processes=1)
    made = Searches(Study(options.folder, sampler, world, novelty.INPUTS))
    units = [(name, batch) for batch in range(options.batches) for name in sampler.classes]
    for by, some in ((NOVELTY, units), (SCORE, units[: options.scored])):
        for unit in some:
            made.values(by, *unit)
            for arm, how in ARMS[by].items():
                made.of_arm(arm, how, *unit)
    study = Figures(made, Judge(world, place), units, ARMS)
    settings = program.settings(parser, options, **sampler.settings(), inputs=novelty.INPUTS)
    found = {
        "settings": settings,
        "looks": study.looks(SCHEDULES),
        "costs": study.costs(),
        "arms": study.by_arm(),
        "equal": study.equal(),
        "off_stock": study.off_stock(),
    }
    program.write(options.out, found, table)
    if SCORE in study.units:
        sheet(made, study.units[SCORE][:3]).save(options.folder / "search.png", optimize=True)


def sheet(made: Searches, units: Sequence[Unit]) -> Image.Image:
    """What each arm kept of some batches."""
    arms = [*ARMS[NOVELTY], *ARMS[SCORE]]
    columns = [f"{name} {number + 1}" for name, _ in units for number in range(KEPT)]
    kept = [[load_file(made.file(arm, *unit))["pictures"] for unit in units] for arm in arms]
    rows = [[Image.fromarray(one.numpy()) for one in torch.cat(parts)] for parts in kept]
    return contact_sheet("What is kept", arms, rows, [[""] * len(columns)] * len(rows), columns, side=96)


# --- tables ------------------------------------------------------------------------------------------------------------


def table(figures: Row) -> str:
    return "\n\n".join(tables(figures))


def tables(figures: Row) -> list[str]:
    """Of ranks, of schedules, of arms, and of arms at equal seconds."""
    return [ranks_table(figures), schedules_table(figures), arms_table(figures), equal_table(figures)]


def ranks_table(figures: Row) -> str:
    """A row for each share of the steps, a column for each guide."""
    columns = {"share of the steps": "{share}"}
    for by, one in figures["looks"].items():
        columns[f"{by} ({sum(one['seeds'])} seeds of {one['classes']} kinds)"] = f"{{{by}}}"
    rows = []
    for share in SHARES:
        ranks = {by: one["spearman"][f"{share:g}"] for by, one in figures["looks"].items()}
        text = "{mean:.2f} ({least:.2f} to {most:.2f})"
        rows.append({"share": share} | {by: text.format_map(rank) for by, rank in ranks.items()})
    return markdown(columns, rows)


def schedules_table(figures: Row) -> str:
    """A row for each schedule: the work, and what stays by each guide."""
    looks = figures["looks"]
    columns = {"looks": "{looks}", "denoiser's work": "{work}", "appraisals": "{appraised}"}
    for by in looks:
        columns |= {f"best 4 kept, {by}": f"{{{by}_best}}", f"lead kept, {by}": f"{{{by}_gain}}"}
    rows = []
    for name, one in looks[NOVELTY]["schedules"].items():
        row = {"looks": name, "work": f"{one['work']:.0%}".replace("%", " %"), "appraised": one["appraised"]}
        for by in looks:
            own = looks[by]["schedules"][name]
            row |= {f"{by}_best": _percent(own["best_kept"]), f"{by}_gain": _percent(own["gain_kept"])}
        rows.append(row)
    return markdown(columns, rows)


def arms_table(figures: Row) -> str:
    """A row for each arm: the means, and in brackets the difference from the first seeds."""
    columns = {"arm": "{arm}", "pictures": "{pictures}", "seconds a picture": "{seconds:.2f}"}
    columns |= {HEADINGS[name]: f"{{{name}}}" for name in MEASURES}
    arms = figures["arms"]
    order = sorted(arms, key=lambda arm: (arm != UNGUIDED, arm.startswith(SCORE), arms[arm]["seconds"]))
    return markdown(columns, [_row(arm, arms[arm], "change") for arm in order])


def equal_table(figures: Row) -> str:
    """A row for each arm: the means, and in brackets the lead over the best of N that takes as long."""
    columns = {
        "arm": "{arm}",
        "seconds a picture": "{seconds:.2f}",
        "as long as": "best {count} of {candidates}",
    }
    names = (NOVELTY, SCORE, "distance", "minority", "recognised", "precise")
    columns |= {HEADINGS[name]: f"{{{name}}}" for name in names}
    return markdown(columns, [_row(arm, one, "lead") for arm, one in figures["equal"].items()])


def _row(arm: str, figures: Row, difference: str) -> Row:
    return {"arm": arm} | {name: _cell(name, value, difference) for name, value in figures.items()}


def _cell(name: str, value: Any, difference: str) -> Any:
    if not isinstance(value, dict):
        return value
    scale, digits, unit = (100, 0, " %") if name in novelty.SHARES else (1, 2, "")
    text = f"{scale * value['mean']:.{digits}f}{unit}"
    if difference in value:
        mean, error = (scale * (value[difference][key] or 0) for key in ("mean", "standard_error"))
        text += f" ({mean:+.{digits}f} +- {error:.{digits}f})"
    return text


def _percent(value: Row) -> str:
    return f"{100 * value['mean']:.0f} +- {100 * (value['standard_error'] or 0):.0f} %"


if __name__ == "__main__":
    main()
