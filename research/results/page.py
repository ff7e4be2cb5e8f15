"""docs/results.md: every table of it, from the committed figures; and its pictures."""

import json
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from research.effects import evaluation, novelty, search, strengths
from research.harness import rarity_figures
from research.harness.batches import Study
from research.harness.images import UNGUIDED
from research.harness.pack import ROOT
from research.harness.program import FIGURES, Row
from research.harness.sheet import contact_sheet
from research.results import tables
from research.results.arms import DOSE, METHODS, SEARCHES, SHIPPED
from tools.markers import fill

PAGE = ROOT / "docs" / "results.md"
IMAGES = ROOT / "docs" / "images"
SHOWN = (UNGUIDED, SHIPPED, "score 1", *METHODS, "random direction", *SEARCHES)
RARITY = {
    "agreement": rarity_figures.agreement_table,
    "kinds": rarity_figures.class_table,
    "unusual": rarity_figures.separation_table,
}
CURVES = {
    "distance": "judge's distance",
    "minority": "minority hit rate",
    "precise": "precise",
    "contrast": "contrast",
}


def _figures(name: str) -> Row:
    found: Row = json.loads((FIGURES / f"{name}.json").read_text())
    return found


def texts() -> dict[str, str]:
    """Every table of the page, by the name of its place."""
    searched = dict(
        zip(("ranks", "schedules", "arms", "equal"), search.tables(_figures("search")), strict=True)
    )
    return (
        tables.tables(_figures("results"))
        | {"novelty": novelty.table(_figures("novelty")), "strengths": strengths.table(_figures("strengths"))}
        | {f"search, {name}": text for name, text in searched.items()}
        | {f"rarity, {name}": make(_figures("rarity")) for name, make in RARITY.items()}
        | {"evaluation": evaluation.table(_figures("evaluation"))}
    )


def rewritten() -> str:
    """The page with the tables of the committed figures."""
    return fill(PAGE.read_text(encoding="utf-8"), texts())


def rewrite() -> None:
    PAGE.write_text(rewritten(), encoding="utf-8")
    print(f"wrote {PAGE}")


def table(figures: Row) -> str:
    return "\n\n".join(tables.tables(figures).values())


def draw(study: Study, figures: Row) -> None:
    """The page's pictures."""
    dose_chart(figures).savefig(IMAGES / "dose.png", dpi=110)
    arms = [arm for arm in SHOWN if all(study.file(arm, name, 0).exists() for name in study.sampler.classes)]
    sheet(study, arms).convert("RGB").save(IMAGES / "methods.jpg", quality=88)


def sheet(study: Study, arms: Sequence[str]) -> Image.Image:
    """The first picture of each class in each arm."""
    classes = study.sampler.classes
    pictures = [[study.picture(arm, name, 0, 0) for name in classes] for arm in arms]
    captions = [[""] * len(classes)] * len(arms)
    title = "The same noise in every row; searches show the most novel of sixteen"
    return contact_sheet(title, list(arms), pictures, captions, list(classes), side=112)


def dose_chart(figures: Row) -> Figure:
    """What each strength of novelty changes, with 95 % intervals."""
    known = figures["arms"]
    strengths = [strength for strength in DOSE if f"novelty {strength:g}" in known]
    drawn = Figure((9.6, 2.9), layout="constrained")
    for axes, (name, heading) in zip(drawn.subplots(1, len(CURVES)), CURVES.items(), strict=True):
        rows = [known[f"novelty {strength:g}"][name]["change"] for strength in strengths]
        points = sorted(
            [(0.0, 0.0, 0.0, 0.0)]
            + [
                (strength, row["mean"], row["low"], row["high"])
                for strength, row in zip(strengths, rows, strict=True)
            ]
        )
        x, mean, low, high = np.array(points).T * np.array(
            [[1], *[[100 if name in tables.POINTS else 1]] * 3]
        )
        axes.axhline(0, color="#999999", linewidth=0.8)
        axes.fill_between(x, low, high, color="#2f6db5", alpha=0.25, linewidth=0)
        axes.plot(x, mean, marker="o", color="#2f6db5", markersize=4)
        axes.set_title(f"{heading}, {'points' if name in tables.POINTS else 'change'}", fontsize=10)
        axes.set_xlabel("strength", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    return drawn
