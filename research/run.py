"""Every benchmark in one run, side by side, and the README's table of their figures.

    python dev.py bench [--folder WORK] [PART ...]     run the parts (default: all but cuda), then print the table
    python dev.py bench --table                        only print the table of the figures that are there

Parts are the other files of this folder that measure something; each is a program of its own, runs in a process of
its own, and writes its figures beside itself. All of them take some two hours on two cores, "score" the most.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).absolute().parent
FIGURES = FOLDER / "figures"
PARTS = ("gradient", "score", "step", "memory", "paths", "guides", "djepa", "cuda")
RESUMED = ("gradient", "score", "paths", "cuda")
# Of a machine of their own: left out unless asked for.
ELSEWHERE = ("cuda",)


def read(folder: Path = FIGURES) -> dict[str, Any]:
    """{part: its figures} of the parts that have some."""
    files = {part: folder / f"{part}.json" for part in PARTS}
    return {part: json.loads(file.read_text()) for part, file in files.items() if file.exists()}


def markdown(head: list[str], rows: list[list[Any]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def gradient_table(figures: Mapping[str, Any]) -> str:
    """Time, accuracy and calls of the guided gradient, over all trajectories and for each length."""
    rows = []
    kinds = [kind for kind in figures["table"] if kind != "all"]
    for arm, all_runs in figures["table"]["all"].items():
        worst = ", ".join(f"{figures['table'][kind][arm]['cosine_worst']:.3f}" for kind in kinds)
        rows.append(
            [
                arm,
                f"{all_runs['seconds']:.1f}",
                f"{all_runs['ratio']:.1f}",
                f"{all_runs['cosine_median']:.4f} / {all_runs['cosine_worst']:.4f}",
                worst,
                f"{all_runs['calls_mean']:.1f} / {all_runs['calls_most']}",
            ]
        )
    head = [
        "gradient",
        "s",
        "times faster",
        "cosine, median / worst",
        "worst at " + ", ".join(kinds),
        "calls, mean / most",
    ]
    return markdown(head, rows)


def score_table(figures: Mapping[str, Any]) -> str:
    """How well each cheap score ranks."""
    rows = [
        [name, f"{one['spearman']:.3f}", f"{one['times_less']:.1f}"]
        for name, one in sorted(figures["approximations"].items(), key=lambda item: -item[1]["spearman"])
    ]
    return markdown(["score", "Spearman with exact", "times less time"], rows)


def step_table(figures: Mapping[str, Any]) -> str:
    """A guided step beside an unguided one and beside the paper's."""
    rows = [
        [arm, f"{one['seconds']:.1f}", _ratio(one, "over_unguided"), _ratio(one, "naive_over_this")]
        for arm, one in figures["arms"].items()
    ]
    return markdown(["guided step", "s", "times an unguided step", "times faster than the paper's"], rows)


def _ratio(row: Mapping[str, Any], name: str) -> str:
    return "" if row.get(name) is None else f"{row[name]:.2f}"


def memory_table(figures: Mapping[str, Any]) -> str:
    """What is held beyond weights and inputs."""
    rows = [[name, f"{one['peak GiB']:.2f}"] for name, one in figures["table"].items()]
    return markdown(["forward and backward of", "peak GiB"], rows)


def paths_table(figures: Mapping[str, Any]) -> str:
    """What each way to the gradient changes on the demo generator, for how much time."""
    rows = []
    for arm, one in figures["measures"]["projected"]["arms"].items():
        if "change" not in one:
            continue
        change, share = (
            f"{one[name]['mean']:.{digits}f} +- {one[name]['standard_error'] or 0:.{digits}f}"
            for name, digits in (("change", 1), ("share", 2))
        )
        rows.append(
            [arm, change, share, f"{one['extra_seconds']:.1f}", f"{one['change_per_extra_second']:.2f}"]
        )
    head = ["path", "change of score", "share of faithful's", "extra s an image", "change a second"]
    return markdown(head, rows)


def guides_table(figures: Mapping[str, Any]) -> str:
    """What each published encoder costs as a guide; blank where nothing was measured."""
    rows = []
    for name, one in figures["guides"].items():
        scores, seconds = one["scores"], one["seconds"]
        spread = times = ""
        if scores:
            spread = f"{scores['min']:.0f} to {scores['max']:.0f}, median {scores['median']:.0f}"
        if seconds:
            times = f"{seconds['exact']:.1f} exact, {seconds['projected']:.1f} projected, {seconds['gradient']:.1f} guided"
        rows.append(
            [
                name,
                one["embedding_length"],
                one["null_directions"],
                f"{one['weights_M']:.1f}",
                "" if one["download_MB"] is None else one["download_MB"],
                _licence(one),
                f"{one['GFLOP']:.1f}",
                spread,
                times,
            ]
        )
    head = [
        "guide",
        "embedding length",
        "null directions",
        "encoder weights, M",
        "download, MB",
        "licence",
        "GFLOP a pass",
        "score's spread",
        "s an image",
    ]
    return markdown(head, rows)


def _licence(row: Mapping[str, Any]) -> str:
    if row["licence"] is None:
        return ""
    restricted = "" if row["commercial"] else ", **non-commercial**"
    return row["licence"] + restricted + (", gated: by hand" if row["gated"] else "")


def djepa_table(figures: Mapping[str, Any]) -> str:
    """How fast D-JEPAs draw tokens, beside a plain loop; then what the published sizes take, counted."""
    rows = [
        [
            one["model"],
            one["batch"],
            f"{one['steps']} x {one['denoising_steps']}",
            f"{one['plain_tokens_a_second']:.1f}",
            f"{one['tokens_a_second']:.1f}",
            f"{one['times_faster']:.2f}",
            f"{one['largest_difference']:.0e}",
        ]
        for one in figures["rows"]
    ]
    head = [
        "model",
        "images",
        "sets x denoising steps",
        "plain loop, tokens a s",
        "tokens a s",
        "times faster",
        "apart",
    ]
    names = ["size", "weights, M", "float32, GB", "transformers, TFLOP an image", "head, TFLOP an image"]
    counted = [list(one.values()) for one in figures["counted"]]
    return markdown(head, rows) + "\n\n" + markdown(names, counted)


def cuda_table(figures: Mapping[str, Any]) -> str:
    """Guided steps on a CUDA device, their memory and ratios; then the encoder's gradient alone."""
    rows = []
    for size, encoders in figures["steps"].items():
        for encoder, arms in encoders.items():
            for arm, one in sorted(arms.items(), key=lambda item: -item[1].get("seconds", 0)):
                if "failed" in one:
                    continue
                gradient = one["stages"].get("encoder, gradient")
                rows.append(
                    [
                        f"{size}, {encoder}",
                        arm,
                        f"{one['seconds']:.3f}",
                        f"{one['cold_seconds']:.3f}",
                        f"{gradient['seconds']:.3f}" if gradient else "",
                        _ratio(one, "over_unguided"),
                        _ratio(one, "naive_over_this"),
                        f"{one['above_weights_GiB']:.1f}",
                    ]
                )
    head = [
        "denoiser, encoder",
        "guided step",
        "s",
        "first one, s",
        "of it the encoder, s",
        "times an unguided step",
        "times faster than the paper's",
        "peak above weights, GiB",
    ]
    gradients = [
        [
            arm,
            f"{one['seconds']:.3f}",
            f"{one['cold_seconds']:.3f}" if "cold_seconds" in one else "",
            f"{one['cosine']:.4f}",
        ]
        for arm, one in figures["gradient"]["arms"].items()
    ]
    names = ["gradient of a photo", "s", "first one, s", "cosine with float64's"]
    return markdown(head, rows) + "\n\n" + markdown(names, gradients)


TABLES = {
    "gradient": gradient_table,
    "score": score_table,
    "step": step_table,
    "memory": memory_table,
    "paths": paths_table,
    "guides": guides_table,
    "djepa": djepa_table,
    "cuda": cuda_table,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument(
        "--folder", type=Path, default=FOLDER / "work", help="where parts keep what they resume from"
    )
    parser.add_argument("--table", action="store_true", help="only print the table")
    options = parser.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"there is no part {sorted(unknown)[0]!r}; parts: {', '.join(PARTS)}")
    if not options.table:
        for part in options.parts or [part for part in PARTS if part not in ELSEWHERE]:
            print(f"== {part}", flush=True)
            words = [
                sys.executable,
                "-P",
                str(FOLDER / ("effects" if part == "paths" else "costs") / f"{part}.py"),
            ]
            if part in RESUMED:
                words += ["--folder", str(options.folder)]
            if subprocess.run(words).returncode != 0:
                return 1
    for part, figures in read().items():
        print(f"\n{part}\n\n{TABLES[part](figures)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
