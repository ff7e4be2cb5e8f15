"""docs/gradient_check.md: what the gradient check catches and misses, from the figures of its long test.

python dev.py run tools/gradient_check_page.py        write it
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).absolute().parents[1]
FIGURES = ROOT / "tests" / "host" / "gradient" / "gradient_check.json"
PAGE = ROOT / "docs" / "gradient_check.md"
DTYPES = ("float32", "float16", "bfloat16")
FAULTS = {
    "attention_without_a_backward": "attention without a backward",
    "network_without_a_backward": "the whole network without a backward",
    "a_cached_step": "a step taken from a cache",
    "a_buffer_that_is_used_again": "weights in a buffer that is used again",
}


def page(figures: dict[str, Any]) -> str:
    """The page in Markdown."""
    sound = figures["sound"]
    return f"""# The gradient check

This page says what the gradient check catches, what it misses, and how often it raises a false alarm.

Before a run trusts the gradient of a denoiser or decoder, it compares the vector-Jacobian product with a central
difference (`host/gradient/gradient_check.py`), once per process for each network with its patches, size and precision. The
comparison takes two more calls of the denoiser, of the decoder for one image, and one more backward pass of each. A
denoiser that fails is held constant for the run, and the node says so; a decoder that fails is refused.

## Sound networks

{sound["checks"]} comparisons in {len(families(sound))} families, in float32, float16 and bfloat16, at four noise levels,
three CFG scales and several latents: {len(sound["false alarms"])} false alarms. A comparison that goes too far beyond 1 is
repeated with a smaller step, and both count. The ratio is the predicted change divided by the measured one; noise is
how much of the change is rounding or curvature.

{sound_table(sound)}

## Faults

Faults put into the same networks: caught / tried. What is missed is hidden by rounding: with one block of few
channels, attention is sometimes a hundredth of what a tiny network computes. The figures give the ratio of each.

{fault_table(figures["faults"])}

Tiny random models of ComfyUI's own classes on a processor; `python dev.py test --long`,
[figures](../tests/host/gradient/gradient_check.json).
"""


def families(sound: dict[str, Any]) -> set[str]:
    """The names of the families that were checked."""
    return {name.split()[0] for name in sound["families"]}


def sound_table(sound: dict[str, Any]) -> str:
    """A row a part and a precision: how many checks, and how far ratio and noise went."""
    lines = [
        "| part | precision | comparisons | ratio, lowest / highest | noise, median / highest |",
        "| --- | --- | --- | --- | --- |",
    ]
    for part in ("denoiser", "decoder"):
        for dtype in DTYPES:
            cells = [
                row
                for name, rows in sound["families"].items()
                if name.split()[1:] == [dtype, part]
                for row in rows
            ]
            ratios = [ratio for ratio, _, _ in cells]
            noise = sorted(noise for _, noise, _ in cells)
            lines.append(
                f"| {part} | {dtype} | {len(cells)} | {min(ratios):.3f} / {max(ratios):.3f} | "
                f"{noise[len(noise) // 2]:.3f} / {noise[-1]:.3f} |"
            )
    return "\n".join(lines)


def fault_table(faults: dict[str, Any]) -> str:
    """A row a fault: how often it was caught in each precision."""
    lines = [f"| fault | {' | '.join(DTYPES)} |", "| --- |" + " --- |" * len(DTYPES)]
    for fault, words in FAULTS.items():
        cells = []
        for dtype in DTYPES:
            tried = [by_dtype[dtype]["caught"] for by_dtype in faults[fault].values() if dtype in by_dtype]
            cells.append(f"{sum(tried)} / {len(tried)}")
        lines.append(f"| {words} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    PAGE.write_text(page(json.loads(FIGURES.read_text())), encoding="utf-8")


if __name__ == "__main__":
    main()
