"""The support matrix in docs/compatibility.md, from the figures that `dev.py test --long` leaves in docs/support.json.

python dev.py run tools/support.py        write it into the page
"""

from __future__ import annotations

import json
from pathlib import Path

from tools.markers import fill, table

ROOT = Path(__file__).absolute().parents[1]
FIGURES = ROOT / "docs" / "support.json"
PAGE = ROOT / "docs" / "compatibility.md"

Verdicts = dict[str, dict[str, str]]

MEANINGS = {
    "exact": "the shift changes the sampler's own state",
    "handled": "the sampler keeps a copy of its state; the shift is carried along, with the same result",
    "refused": "refused by name before the first step",
}


def tables(figures: dict) -> str:
    """The matrix in Markdown."""
    return (
        f"{family_table(figures['family'])}\n{sampler_table(figures['sampler'])}\n"
        f"ComfyUI {figures['ComfyUI']}, float32 on a processor. Every cell is a passing test of `python dev.py test --long` "
        "with tiny random models of ComfyUI's own classes. *Works*: the gradient inside a real run equals the finite "
        "difference, at CFG 1 and 4. *Exact* and *handled*: the image equals, to rounding, that of ComfyUI's sampler with "
        "the shift written into its source. In every cell a shift of zero, and strength 0, give the stock sampler's image "
        "bit for bit.\n"
    )


def family_table(families: Verdicts) -> str:
    """A row a family; its columns are the paths of the gradient."""
    columns = sorted({column for row in families.values() for column in row})
    rows = [[name, *(row.get(column, "") for column in columns)] for name, row in families.items()]
    return table(["model family", *columns], rows)


def sampler_table(samplers: Verdicts) -> str:
    """A row a verdict, with the samplers that have it under every scheduler."""
    schedulers = sorted({column for row in samplers.values() for column in row})
    by_verdict: dict[str, list[str]] = {verdict: [] for verdict in MEANINGS}
    for name, row in samplers.items():
        if set(row) != set(schedulers) or len(set(row.values())) != 1:
            raise ValueError(f"{name} was not found the same under every scheduler: {row}")
        by_verdict[row[schedulers[0]]].append(name)
    rows = [
        [f"**{verdict}** ({len(names)})", ", ".join(names), MEANINGS[verdict]]
        for verdict, names in by_verdict.items()
    ]
    return table([f"samplers, under all {len(schedulers)} schedulers", "", ""], rows)


def page(text: str) -> str:
    """The page's text with the measured matrix in it."""
    return fill(text, {"support matrix": tables(json.loads(FIGURES.read_text(encoding="utf-8")))})


def main() -> None:
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
