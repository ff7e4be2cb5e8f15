"""What research/effects/rarity.py finds, as numbers with intervals, tables and a chart."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from research.harness.agreement import (
    Rows,
    Values,
    auroc,
    auroc_within,
    explained,
    interval,
    rank_correlation,
    residual,
)
from research.harness.program import Row, markdown

APPEARANCE = ("contrast", "saturation", "edges")
ADJUSTED = "score adjusted for contrast"
CRITERIA = ("score", "score at equal contrast", ADJUSTED, "novelty", "distance", "contrast")
IN_CLASSES = ("score", ADJUSTED, "novelty")
TESTED = ("score", ADJUSTED, "novelty", "contrast")
LABELS = {"distance": "judge's distance, for comparison", "contrast": "contrast alone, for comparison"}
COLOURS = {"score": "C3", ADJUSTED: "C1", "score at equal contrast": "C8", "novelty": "C0", "contrast": "C7"}
COLOURS["distance"] = "C2"
Columns = Mapping[str, Values]


def adjusted(columns: Columns, fitted: Columns) -> Values:
    """The score less what a line on the logarithm of contrast, fitted to other pictures, expects."""
    slope, constant = np.polyfit(np.log(fitted["contrast"]), fitted["score"], 1)
    return columns["score"] - slope * np.log(columns["contrast"]) - constant


def agreement(columns: Columns, classes: Sequence[str]) -> Row:
    """How each criterion (larger is rarer) ranks pictures beside what is known of them, in all classes and in each.

    Args:
        columns: the criteria but the adjusted one, APPEARANCE, "rarity" and "minority"; (N,) each, NaN where unknown.
    """
    names = list(dict.fromkeys(classes))
    rows = [np.flatnonzero(np.array(classes) == name) for name in names]
    apart = np.empty(len(classes))
    for some in rows:
        apart[some] = residual(columns["score"][some], [np.log(columns["contrast"][some])])
    columns = dict(columns) | {ADJUSTED: apart}
    found = {"all": {name: _of_all(columns, name, rows) for name in CRITERIA}}
    for name, some in zip(names, rows, strict=True):
        found[name] = {criterion: _ranking(columns, criterion, [some]) for criterion in IN_CLASSES}
    return {"pictures": {name: len(some) for name, some in zip(names, rows, strict=True)}, "criteria": found}


def _ranking(
    columns: Columns,
    name: str,
    rows: Sequence[Rows],
    others: Sequence[str] = ("rarity", "distance", "contrast"),
) -> Row:
    own, given = columns[name], [columns[one] for one in APPEARANCE]
    found = {
        other: interval(lambda *some, other=other: rank_correlation(own, columns[other], some), rows)
        for other in others
        if other != name
    }
    if name not in APPEARANCE:
        found["explained"] = interval(lambda *some: explained(own, given, some), rows)
    return found


def _of_all(columns: Columns, name: str, rows: Sequence[Rows]) -> Row:
    own, given = columns[name], [columns[one] for one in APPEARANCE]
    rows = [some[np.isfinite(own[some])] for some in rows]
    found = _ranking(columns, name, rows, ("rarity", "distance", *APPEARANCE))
    found["minority"] = interval(lambda *some: auroc_within(own, columns["minority"] > 0, some), rows)
    if name not in APPEARANCE:
        partial = interval(lambda *some: rank_correlation(own, columns["rarity"], some, given), rows)
        found["rarity, given"] = partial
    return found


def separation(sets: Mapping[str, Columns], common: str) -> Row:
    """AUROC of each other set against the common one, by each criterion; row i of a spoiled set is of common picture i."""
    usual = dict(sets[common]) | {ADJUSTED: adjusted(sets[common], sets[common])}
    found: Row = {}
    for name, columns in sets.items():
        if name != common:
            own = dict(columns) | {ADJUSTED: adjusted(columns, sets[common])}
            found[name] = {one: _auroc(own[one], usual[one], name == "drawings") for one in TESTED}
    return found


def _auroc(unusual: Values, common: Values, others: bool) -> Row:
    """others: whether these are other pictures, which are drawn anew by themselves."""
    rows = np.arange(len(common))
    if others:
        return interval(lambda a, b: auroc(unusual[a], common[b]), [np.arange(len(unusual)), rows])
    return interval(lambda some: auroc(unusual[some], common[some]), [rows])


# --- tables --------------------------------------------------------------------------------------------------------


def _cell(one: Row) -> str:
    return f"{one['value']:.2f} ({one['low']:.2f} to {one['high']:.2f})"


def _cells(found: Row) -> Row:
    return {name: _cell(one) for name, one in found.items()}


def agreement_table(figures: Row) -> str:
    """A row for each criterion, of the drawings of all classes."""
    columns = {
        "criterion": "{criterion}",
        "known rarity": "{rarity}",
        "given contrast, saturation, edges": "{rarity, given}",
        "minority found (AUROC)": "{minority}",
        "judge's distance": "{distance}",
        "contrast": "{contrast}",
        "saturation": "{saturation}",
        "edges": "{edges}",
        "explained by these three (R^2)": "{explained}",
    }
    found = figures["drawings"]["criteria"]["all"]
    return markdown(
        columns, [{"criterion": LABELS.get(name, name)} | _cells(found[name]) for name in CRITERIA]
    )


def class_table(figures: Row) -> str:
    """A row for each class of drawings."""
    columns = {
        "kind": "{kind}",
        "score: known rarity": "{score}",
        "score adjusted: known rarity": "{apart}",
        "novelty: known rarity": "{novelty}",
        "score: judge's distance": "{score far}",
        "novelty: judge's distance": "{novelty far}",
        "score: contrast": "{contrast}",
        "score: R^2": "{explained}",
    }
    rows = []
    for kind, found in figures["drawings"]["criteria"].items():
        score, novelty = found["score"], found["novelty"]
        named = {"score": score["rarity"], "apart": found[ADJUSTED]["rarity"], "novelty": novelty["rarity"]}
        named |= {"score far": score["distance"], "novelty far": novelty["distance"]}
        named |= {"contrast": score["contrast"], "explained": score["explained"]}
        rows.append({"kind": f"{kind} kinds" if kind == "all" else kind} | _cells(named))
    return markdown(columns, rows)


def separation_table(figures: Row) -> str:
    """A row for each set of unusual pictures, at each size."""
    rows = [
        {"set": f"{name}, {side} pixels"} | _cells(found)
        for side, sets in figures["auroc"].items()
        for name, found in sets.items()
    ]
    return markdown(
        {"unusual pictures": "{set}"} | {LABELS.get(one, one): f"{{{one}}}" for one in TESTED}, rows
    )


def tables(figures: Row) -> str:
    """All of them."""
    return "\n\n".join(make(figures) for make in (agreement_table, class_table, separation_table))


# --- chart ---------------------------------------------------------------------------------------------------------


def _dots(axes: Axes, groups: Mapping[str, Mapping[str, Row]], criteria: Sequence[str]) -> None:
    """A line for each criterion in each group: a dot at its value, and its interval."""
    for number, found in enumerate(groups.values()):
        for place, name in enumerate(criteria):
            one, y = found[name], number + (place - (len(criteria) - 1) / 2) * 0.16
            axes.plot([one["low"], one["high"]], [y, y], color=COLOURS[name], lw=2, solid_capstyle="round")
            axes.plot(one["value"], y, "o", color=COLOURS[name], label=name)
    axes.set_yticks(range(len(groups)), list(groups))
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)


def chart(figures: Row, file: Path) -> None:
    """Draw what the tables say of all classes and of unusual pictures."""
    figure = Figure((11, 5), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.1))
    found = figures["drawings"]["criteria"]["all"]
    shown = ("score", "score at equal contrast", ADJUSTED, "novelty")
    headings = {"rarity": "known rarity", "distance": "judge's distance", "contrast": "contrast"}
    _dots(left, {text: {name: found[name][one] for name in shown} for one, text in headings.items()}, shown)
    left.axvline(0, color="#5a5a5a", lw=1)
    left.set(xlim=(-1, 1), xlabel="rank correlation with it, drawings within their kind")
    left.set_title("What does each rank drawings by?", loc="left")
    _dots(right, next(iter(figures["auroc"].values())), TESTED)
    right.axvline(0.5, color="#5a5a5a", lw=1)
    right.set(xlim=(0, 1), xlabel="AUROC: above 0.5 they are found rarer, below it commoner")
    right.set_title("Does it find unusual pictures?", loc="left")
    entries = dict(zip(*reversed(right.get_legend_handles_labels()), strict=True))
    entries |= dict(zip(*reversed(left.get_legend_handles_labels()), strict=True))
    order = [*shown, "contrast"]
    figure.legend(
        [entries[name] for name in order], order, loc="outside lower center", ncols=5, frameon=False
    )
    figure.savefig(file)
