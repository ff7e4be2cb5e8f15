"""The README's support matrix, from the figures that `dev.py test --long` leaves in docs/support.json.

python dev.py run tools/support.py        write it into the README
"""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).absolute().parents[1]
FIGURES = ROOT / "docs" / "support.json"
README = ROOT / "README.md"
BEGIN, END = "<!-- support matrix -->\n", "<!-- end of the support matrix -->\n"

Verdicts = dict[str, dict[str, str]]

MEANINGS = {
    "exact": "the shift is a change of the sampler's own state",
    "handled": "the sampler keeps a copy of its state; the shift is carried along beside it, with the same result",
    "refused": "refused by name before the first step",
}


def tables(figures: dict) -> str:
    """The matrix in Markdown."""
    return (
        f"{family_table(figures['family'])}\n{sampler_table(figures['sampler'])}\n"
        f"ComfyUI {figures['ComfyUI']}, float32 on a processor; every cell is a passing test of `python dev.py test --long` "
        "with tiny random models of the host's own classes. *Works*: the gradient inside a real run is the finite "
        "difference, at CFG 1 and 4. *Exact* and *handled*: the image is, to rounding, that of the host's sampler with the "
        "shift written into its source. In every cell a shift of zero, and strength 0, give the stock sampler's image bit "
        "for bit.\n"
    )


def family_table(families: Verdicts) -> str:
    """A row a family; its columns are the paths of the gradient."""
    columns = sorted({column for row in families.values() for column in row})
    lines = ["| model family | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    for name, row in families.items():
        lines.append(f"| {name} | " + " | ".join(row.get(column, "") for column in columns) + " |")
    return "\n".join(lines) + "\n"


def sampler_table(samplers: Verdicts) -> str:
    """A row a verdict, with the samplers that have it under every scheduler."""
    schedulers = sorted({column for row in samplers.values() for column in row})
    by_verdict: dict[str, list[str]] = {verdict: [] for verdict in MEANINGS}
    for name, row in samplers.items():
        if set(row) != set(schedulers) or len(set(row.values())) != 1:
            raise ValueError(f"{name} was not found the same under every scheduler: {row}")
        by_verdict[row[schedulers[0]]].append(name)
    lines = [f"| samplers, under all {len(schedulers)} schedulers | | |", "| --- | --- | --- |"]
    for verdict, names in by_verdict.items():
        lines.append(f"| **{verdict}** ({len(names)}) | {', '.join(names)} | {MEANINGS[verdict]} |")
    return "\n".join(lines) + "\n"


def with_tables(readme: str, text: str) -> str:
    """The README with the matrix between its markers. Raises ValueError where they are missing."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md has no {BEGIN.strip()} ... {END.strip()}")
    return before + begin + "\n" + text + "\n" + end + after


def main() -> None:
    text = with_tables(README.read_text(encoding="utf-8"), tables(json.loads(FIGURES.read_text())))
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
