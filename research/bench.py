"""Every benchmark, and the tables of their figures.

    python dev.py bench [--folder WORK] [PART ...]     run the parts (default: all but cuda), then print the tables
    python dev.py bench --table                        only print the tables of the figures that are there

Each part is a separate program, runs in a separate process, and has its table() beside its measurement. All of them take
some three hours on two cores, "score" the most.
"""

import argparse
import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from research.harness.pack import ROOT
from research.harness.program import FIGURES

# Part -> its program. (A module called cuda beside the others would hide the library of that name from torch.)
PARTS = {part: f"costs/{part}" for part in ("gradient", "score", "step", "memory")}
PARTS |= {"paths": "effects/paths", "guides": "costs/guides", "djepa": "costs/djepa", "cuda": "costs/device"}
RESUMED = ("gradient", "score", "paths", "cuda")
# Need another machine: left out unless asked for.
ELSEWHERE = ("cuda",)


def read(folder: Path = FIGURES) -> dict[str, Any]:
    """{part: its figures} of the parts that have some."""
    files = {part: folder / f"{part}.json" for part in PARTS}
    return {part: json.loads(file.read_text()) for part, file in files.items() if file.exists()}


def table(part: str, figures: Mapping[str, Any]) -> str:
    """The figures of a part in Markdown."""
    return importlib.import_module(f"research/{PARTS[part]}".replace("/", ".")).table(figures)


TABLES: dict[str, Callable[[Mapping[str, Any]], str]] = {part: partial(table, part) for part in PARTS}


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "research" / "work", help="what interrupted parts resume from"
    )
    parser.add_argument("--table", action="store_true", help="only print the tables")
    options = parser.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"there is no part {sorted(unknown)[0]!r}; parts: {', '.join(PARTS)}")
    for part in [] if options.table else options.parts or [part for part in PARTS if part not in ELSEWHERE]:
        print(f"== {part}", flush=True)
        words = [sys.executable, "-P", str(ROOT / "research" / f"{PARTS[part]}.py")]
        words += ["--folder", str(options.folder)] if part in RESUMED else []
        if subprocess.run(words).returncode != 0:
            return 1
    for part, figures in read().items():
        print(f"\n{part}\n\n{TABLES[part](figures)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
