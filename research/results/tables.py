"""The tables of the results, and the sentence above them."""

from collections.abc import Iterable, Mapping, Sequence

from research.harness.images import UNGUIDED
from research.harness.program import Row, markdown
from research.results.arms import ABLATIONS, CONTROLS, DOSE, GUIDED, MATCHED, METHODS, SEARCHES, SHIPPED
from research.results.figures import EQUAL, SET_MEASURES

HEADINGS = {
    "distance": "judge's distance",
    "minority": "minority hit rate, points",
    "tail": "share as rare",
    "recognised": "recognised, points",
    "precise": "precise, points",
    "score": "score",
    "contrast": "contrast",
    "saturation": "saturation",
    "edges": "edges",
    "confidence": "confidence, points",
    "copy": "nearest training picture",
    "novelty": "novelty, the guide's",
    "vendi": "Vendi score of 4",
}
POINTS = ("minority", "recognised", "precise", "confidence")
FINE = ("contrast", "saturation", "edges", "copy", "tail")
MAIN = ("distance", "minority", "tail", "recognised", "precise", "score", "contrast")
MORE = ("novelty", "confidence", "copy", "saturation", "edges", "vendi")
SETS = {
    "frechet": "Frechet distance",
    "spatial": "spatial Frechet distance",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
}


def tables(figures: Row) -> dict[str, str]:
    """Name -> Markdown, as the page has it."""
    compared = [*GUIDED, *METHODS, *SEARCHES, *CONTROLS, *MATCHED]
    doses = [f"novelty {strength:g}" for strength in DOSE]
    found = {
        "in a sentence": sentence(figures),
        "compared": changes(figures, compared, MAIN, costs=True),
        "compared, more": changes(figures, compared, MORE),
        "effect sizes": effects(figures, compared),
        "dose": changes(figures, doses, MAIN),
        "ablations": changes(figures, [SHIPPED, "score 1", *ABLATIONS], MAIN),
        "equal seconds": equal(figures),
        "augmentation": augmentation(figures),
    }
    return found | {f"sets, {name}": sets(figures, name, compared) for name in figures["sets"]}


def sentence(figures: Row) -> str:
    """What a layman wants to know."""
    arms = figures["arms"]
    plain, guided = (100 * arms[arm]["minority"]["mean"] for arm in (UNGUIDED, SHIPPED))
    return (
        f"**Of 100 avatars, {plain:.0f} show something that at most one in twenty of their kind has. Guided by novelty at "
        f"strength 1, {guided:.0f} do, from the same noise, and "
        f"{100 * arms[SHIPPED]['recognised']['mean']:.1f} % are still recognised.**"
    )


def changes(figures: Row, arms: Sequence[str], names: Sequence[str], *, costs: bool = False) -> str:
    """A row for each arm: paired changes with their intervals; the first two rows are means."""
    columns = {"arm": "{arm}", "pictures": "{pictures}"}
    columns |= {"seconds a picture": "{seconds:.2f}"} if costs else {}
    columns |= {HEADINGS[name]: f"{{{name}}}" for name in names}
    known = figures["arms"]
    rows = [{"arm": "held-out drawings"} | _means(figures["real"], names)]
    rows += [{"arm": UNGUIDED, "seconds": figures["seconds"][UNGUIDED]} | _means(known[UNGUIDED], names)]
    for arm in arms:
        if arm in known:
            row: Row = {
                "arm": arm,
                "pictures": known[arm]["pictures"],
                "seconds": figures["seconds"].get(arm),
            }
            rows.append(row | {name: _change(name, known[arm][name]) for name in names if name in known[arm]})
    return markdown(columns, rows)


def effects(figures: Row, arms: Sequence[str]) -> str:
    """A row for each arm: each change in standard deviations of the unguided pictures."""
    names = [
        name for name in HEADINGS if name not in ("recognised", "confidence")
    ]  # of which hardly any varies
    columns = {"arm": "{arm}"} | {HEADINGS[name].partition(",")[0]: f"{{{name}:+.2f}}" for name in names}
    known = figures["arms"]
    rows = [
        {"arm": arm} | {name: known[arm][name].get("effect") for name in names if name in known[arm]}
        for arm in arms
        if arm in known
    ]
    return markdown(columns, rows)


def sets(figures: Row, reference: str, arms: Iterable[str]) -> str:
    """A row for each arm: measures of the set against a reference, with the change from the unguided one."""
    found = figures["sets"][reference]
    columns = {"arm": "{arm}"} | {SETS[name]: f"{{{name}}}" for name in SET_MEASURES}
    rows = []
    for arm in (UNGUIDED, *arms):
        if arm in found:
            cells = {name: _set_cell(name, found[arm][name]) for name in SET_MEASURES}
            rows.append({"arm": arm} | cells)
    return markdown(columns, rows)


def equal(figures: Row) -> str:
    """A row for each arm: its lead over the most novel of as many unguided pictures as take the same seconds."""
    columns = {
        "arm": "{arm}",
        "seconds a picture": "{seconds:.2f}",
        "as long as": "best {count} of {candidates}",
    }
    columns |= {HEADINGS[name]: f"{{{name}}}" for name in EQUAL}
    rows = [
        {"arm": arm} | one | {name: _change(name, one[name]) for name in EQUAL}
        for arm, one in figures["equal"].items()
    ]
    return markdown(columns, sorted(rows, key=lambda row: row["seconds"]))


def augmentation(figures: Row) -> str:
    """A row for each arm that is added to real pictures."""
    headings = {
        "accuracy": "accuracy",
        "f1": "F1",
        "precision": "precision",
        "rare_recall": "recall of rare values",
    }
    columns = {"training pictures": "{arm}", "added a class": "{each}"}
    columns |= {heading: f"{{{name}}}" for name, heading in headings.items()}
    rows = []
    for arm, one in figures["augmentation"].items():
        row: Row = {
            "arm": f"real and {arm}" if one["added"] else "real alone",
            "each": one["added"] // 6 or "",
        }
        rows.append(row | {name: _share_cell(one[name]) for name in headings})
    return markdown(columns, rows)


# --- cells -------------------------------------------------------------------------------------------------------------


def _scale(name: str) -> tuple[float, int]:
    """The factor of a measure in the tables, and its digits."""
    return (100, 1) if name in POINTS else (1, 3 if name in FINE else 2)


def _means(row: Mapping[str, Row], names: Iterable[str]) -> Row:
    found: Row = {"pictures": row["pictures"]}
    for name in names:
        if name in row:
            scale, digits = _scale(name)
            found[name] = f"{scale * row[name]['mean']:.{digits}f}" + (" %" if name in POINTS else "")
    return found


def _change(name: str, value: Row) -> str:
    scale, digits = _scale(name)
    return _signed(value["change"], scale, digits) if "change" in value else ""


def _signed(change: Row, scale: float, digits: int) -> str:
    mean, low, high = (scale * change[key] for key in ("mean", "low", "high"))
    return f"{mean:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def _set_cell(name: str, value: Row) -> str:
    digits = 1 if name in ("frechet", "spatial") else 3
    text = f"{value['mean']:.{digits}f}"
    if "change" not in value:
        return f"{text} ({value['low']:.{digits}f} to {value['high']:.{digits}f})"
    return f"{text}, {_signed(value['change'], 1, digits)}"


def _share_cell(value: Row) -> str:
    text = f"{100 * value['mean']:.1f} %"
    return f"{text}, {_signed(value['change'], 100, 1)}" if "change" in value else text
