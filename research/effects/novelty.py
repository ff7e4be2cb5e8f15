"""Does novelty guidance make rarer pictures, by a judge that did not guide?

    python dev.py run research/effects/novelty.py --folder WORK --groups forms --each 32

Arms of the groups that are named, from the same noise as the unguided pictures, in batches of one class. The reference is
300 training pictures of the class, or what the prompt gives by itself. Resumable, and every prefix is a whole experiment:
batch by batch, all classes and arms of it. With --further, the batches that the figures hold already are not drawn
again: later ones are, and pooled with them. The judge is an EfficientNet-Lite0 that was trained on ImageNet; held-out
pictures of the world are what it compares with.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file

from research.harness import program
from research.harness.batches import BATCH, PICTURES, PROMPT, SCORED, Arm, Study
from research.harness.forms import FORMS
from research.harness.images import UNGUIDED, Sampler
from research.harness.program import Row, markdown
from research.harness.sheet import contact_sheet
from research.harness.summary import mean_and_error, pooled
from research.judges.effects import REAL, Judge, vendi
from research.world.data import load_pictures

GROUP = 4  # pictures whose diversity is taken together
HEADINGS = {
    "distance": "judge's distance",
    "minority": "minority hit rate",
    "tail": "share as rare",
    "recognised": "recognised",
    "precise": "precision",
    "contrast": "contrast",
    "saturation": "saturation",
    "vendi": "Vendi score of 4",
}
TARGETED = ", 1 in 20"  # how the names of arms with a target end
TWO_SIZES = (112, 168)  # one encoder as two, for want of the weights of another
SHARES = ("minority", "recognised", "precise")
# As the demo guides: research/effects/strengths.py says what came of it.
INPUTS: Row = {"criterion": "score", "interval": 2, "oversampling": 1, "power_iterations": 1}
INPUTS |= {"range_finder": "tracked in half precision"}


def _novelty(strength: float, **more: Any) -> Row:
    return {"strength": strength, "criterion": "novelty"} | more


GROUPS: dict[str, dict[str, Arm]] = {
    "forms": {f"novelty 1, {form}": Arm(_novelty(1.0), FORMS[form]) for form in FORMS},
    "dose": {f"novelty {s:g}": Arm(_novelty(s)) for s in (-1.0, 0.25, 0.5, 1.0, 2.0)},
    "score": {f"score {s:g}": Arm({"strength": s}, reference="") for s in (1.0, 2.0)},
    "score, more": {f"score {s:g}": Arm({"strength": s}, reference="") for s in (-1.0, 0.25, 0.5)},
    "options": {
        "novelty 2, smooth": Arm(_novelty(2.0, smooth=True)),
        "novelty 2, keep appearance": Arm(_novelty(2.0, keep_appearance=True)),
        "novelty 2, denoiser constant": Arm(_novelty(2.0, gradient_path="denoiser constant")),
        "novelty 2, prompt reference": Arm(_novelty(2.0), reference=PROMPT),
        "both 2": Arm({"strength": 2.0, "criterion": "both"}),
    },
    "two sizes": {
        "novelty 2, at 112 and 168 px": Arm(_novelty(2.0), sizes=TWO_SIZES),
        "novelty 2, at 112 and 168 px, agree": Arm(_novelty(2.0, agree=True), sizes=TWO_SIZES),
    },
    "score options": {
        "score 2, smooth": Arm({"strength": 2.0, "smooth": True}, reference=""),
        "score 2, keep appearance": Arm({"strength": 2.0, "keep_appearance": True}, reference=""),
    },
    "apart": {
        "apart 1": Arm(_novelty(1.0, apart=True), reference="", rows=4),
        "apart 2": Arm(_novelty(2.0, apart=True), reference="", rows=4),
        "apart -1": Arm(_novelty(-1.0, apart=True), reference="", rows=4),
    },
    "target": {
        "novelty 2 at every step, 1 in 20": Arm(
            _novelty(2.0, interval=1, target="1 in 20"), reference=PROMPT
        ),
        "novelty 2 at every step": Arm(_novelty(2.0, interval=1), reference=PROMPT),
    },
    "large steps": {
        "novelty 4, prompt reference, 1 in 20": Arm(_novelty(4.0, target="1 in 20"), reference=PROMPT),
        "novelty 4, prompt reference": Arm(_novelty(4.0), reference=PROMPT),
    },
    "score target": {
        "score 1 at every step, 1 in 20": Arm(
            {"strength": 1.0, "interval": 1, "target": "1 in 20"}, reference=SCORED
        ),
        "score 1 at every step": Arm({"strength": 1.0, "interval": 1}, reference=SCORED),
    },
}


def arms_of(groups: Sequence[str]) -> dict[str, Arm | None]:
    """The arms of some groups, the unguided one first."""
    return {UNGUIDED: None} | {name: arm for group in groups for name, arm in GROUPS[group].items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = program.parser(__file__, __doc__, program.FIGURES / "novelty.json", folder=True)
    parser.add_argument("--groups", nargs="+", choices=list(GROUPS), default=["dose"])
    parser.add_argument("--each", type=int, default=32, help=f"pictures of a class, a multiple of {BATCH}")
    parser.add_argument("--image-size", type=int, default=112, help="at which the encoder sees pictures")
    parser.add_argument("--world", type=Path, help="keeps the world's pictures; WORK by default")
    parser.add_argument(
        "--further", action="store_true", help="add to the figures' batches, which may be gone"
    )
    parser.add_argument("--draw-only", action="store_true", help="only make pictures, and judge them later")
    parser.add_argument("--finish", action="store_true", help="only judge and write the figures")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    sampler = Sampler(options.encoder, image_size=options.image_size)
    place = options.world or options.folder
    world = load_pictures(place, PICTURES * len(sampler.classes), 2 * REAL, processes=1)
    study, arms = Study(options.folder, sampler, world, INPUTS), arms_of(options.groups)
    found = json.loads(options.out.read_text()) if options.out.exists() else {"arms": {}}
    held = (
        held_batches(found["arms"], arms, len(sampler.classes)) if options.further else dict.fromkeys(arms, 0)
    )
    needed = held | {UNGUIDED: min(held.values())}  # for pairs
    for batch in range(options.each // BATCH if not options.finish else 0):
        for name in sampler.classes:
            for arm, how in arms.items():
                if batch >= needed[arm]:
                    study.make(name, arm, how, batch)
    if options.draw_only:
        return
    settings = program.settings(parser, options, **sampler.settings(), inputs=INPUTS, batch=BATCH)
    found["settings"] = found.get("settings", {}) | {"+".join(options.groups): settings}
    judge = cache(lambda: Judge(world, place))
    found["real"] = found.get("real") or real_row(judge())
    made = [arm for arm in arms if batches_of(study, arm, held[arm]) > held[arm]]
    for arm in made:
        own = summary(study, arm, judge, held[arm])
        found["arms"][arm] = joined(found["arms"][arm], own) if held[arm] else own
    found["ends"] = found.get("ends", {}) | {
        arm: ends(study, arm)
        for arm in made
        if arm.endswith(TARGETED) and arm.removesuffix(TARGETED) in made and not held[arm]
    }
    program.write(options.out, found, table)
    for group in options.groups:
        if all(arm in made and not held[arm] for arm in GROUPS[group]):  # a sheet shows first batches
            draw_sheet(study, group).save(options.folder / f"{group}.png", optimize=True)


def draw_sheet(study: Study, group: str) -> Image.Image:
    """The first picture of each class, unguided and in the arms of a group."""
    arms = [UNGUIDED, *GROUPS[group]]
    pictures = [
        [study.picture(arm, name, 0, 0) for arm in arms]
        for name in study.sampler.classes
        if all(study.file(arm, name, 0).exists() for arm in arms)
    ]
    captions = [[""] * len(arms)] * len(pictures)
    return contact_sheet(
        "The same noise", list(study.sampler.classes[: len(pictures)]), pictures, captions, arms, side=128
    )


def held_batches(rows: Row, arms: Iterable[str], classes: int) -> dict[str, int]:
    """How many batches of a class each arm's row counts already."""
    return {arm: rows.get(arm, {"pictures": 0})["pictures"] // (BATCH * classes) for arm in arms}


def joined(one: Row, other: Row) -> Row:
    """The summary of two disjoint sets of pictures, of their summaries."""
    found: Row = {}
    for name, value in one.items():
        if not isinstance(value, dict):
            found[name] = value + other[name]
            continue
        found[name] = pooled(value, other[name])
        if "change" in value:
            found[name]["change"] = pooled(value["change"], other[name]["change"])
    return found


def batches_of(study: Study, arm: str, first: int = 0) -> int:
    """One past the last batch, from the first on, that every class has, of an arm and of the unguided pictures."""
    batch = first
    pairs = [(one, name) for one in (arm, UNGUIDED) for name in study.sampler.classes]
    while all(study.file(one, name, batch).exists() for one, name in pairs):
        batch += 1
    return batch


def paired(study: Study, arm: str, judge: Callable[[], Judge], first: int = 0) -> tuple[list[Row], list[Row]]:
    """The measures of an arm's pictures, as many of each class, and of the unguided ones of the same noise."""
    rows: tuple[list[Row], list[Row]] = ([], [])
    for batch in range(first, batches_of(study, arm, first)):
        for name in study.sampler.classes:
            for one, some in zip((arm, UNGUIDED), rows, strict=True):
                found = study.judged(one, name, batch, judge)
                del found["seconds"]  # of a machine that did other things too
                diversity = [vendi(part) for part in found.pop("features").float().split(GROUP)]
                for index in range(BATCH):
                    row = {key: value[index].item() for key, value in found.items()}
                    if index % GROUP == 0:
                        row["vendi"] = diversity[index // GROUP]
                    some.append(row)
    return rows


def summary(study: Study, arm: str, judge: Callable[[], Judge], first: int = 0) -> Row:
    """Each measure's mean over the batches from the first on, and its paired difference from the unguided pictures."""
    own, unguided = paired(study, arm, judge, first)
    found: Row = {"pictures": len(own)}
    for name in own[0] if own else ():
        pairs = [(a[name], b.get(name)) for a, b in zip(own, unguided, strict=True) if name in a]
        found[name] = mean_and_error([a for a, _ in pairs])
        if arm != UNGUIDED and pairs[0][1] is not None:
            found[name]["change"] = mean_and_error([a - b for a, b in pairs])
    return found


def ends(study: Study, arm: str) -> Row:
    """Where pictures with a target ended in the reference, beside the same arm without."""
    places: dict[str, list[float]] = {}
    for one in (arm, arm.removesuffix(TARGETED)):
        files = [
            study.file(one, name, b) for b in range(batches_of(study, arm)) for name in study.sampler.classes
        ]
        places[one] = torch.cat([load_file(file)["rarer"] for file in files]).tolist()
    pairs = list(zip(*places.values(), strict=True))
    allowed = [own for own, free in pairs if free <= 10]
    return {
        "pictures": len(pairs),
        "within_2_to_10_percent": round(sum(2 <= own <= 10 for own, _ in pairs) / len(pairs), 4),
        "below_2_percent": round(sum(own < 2 for own, _ in pairs) / len(pairs), 4),
        "strength_allows_it": len(allowed),
        "of_these_within": round(sum(2 <= own <= 10 for own in allowed) / len(allowed), 4),
    }


def real_row(judge: Judge) -> Row:
    """The same measures of held-out pictures that nothing is compared with."""
    pictures, labels = judge.real_pictures
    features = judge.features(pictures)
    found = judge.judge(pictures, labels, features)
    return {"pictures": len(pictures)} | {
        name: mean_and_error(value.tolist()) for name, value in found.items()
    }


def table(figures: Row) -> str:
    """A row for each arm: the means, and in brackets the change from the unguided pictures."""
    columns = {"arm": "{arm}", "pictures": "{pictures}"}
    for name, heading in HEADINGS.items():
        columns[heading] = f"{{{name}}}"
    known = [UNGUIDED, *(arm for group in GROUPS.values() for arm in group)]
    rows = [{"arm": "held-out drawings"} | figures["real"]]
    rows += [{"arm": arm} | figures["arms"][arm] for arm in known if arm in figures["arms"]]
    return markdown(columns, [{name: _cell(name, value) for name, value in row.items()} for row in rows])


def _cell(name: str, value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    digits = 0 if name in SHARES else 2
    scale = 100 if name in SHARES else 1
    text = f"{scale * value['mean']:.{digits}f}" + (" %" if name in SHARES else "")
    if "change" in value:
        change, error = (scale * (value["change"][key] or 0) for key in ("mean", "standard_error"))
        text += f" ({change:+.{digits + 1}f} +- {error:.{digits + 1}f})"
    return text


if __name__ == "__main__":
    main()
