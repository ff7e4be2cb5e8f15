"""Tables of pictures that do not exist, with embeddings like real ones: clusters, a falling spectrum, near copies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jepa_core.folders.scorer import Settings
from jepa_core.folders.table import Row, write_table

SETTINGS = Settings("an encoder", "0" * 64, 224, "squash", "on", "projected on 48 outputs")
COPY = 20  # every 20th picture is a near copy of the one before
UNREAD = 500  # every 500th, one before, could not be read
# Names that would be markup, or that change how text around them reads.
HOSTILE = (
    "<img src=x onerror=document.title=1>.png",
    "</script><script>document.title=1</script>.png",
    "\"'><svg onload=document.title=1>.png",
    "\u732b \u0645\u0644\u0641 \u202egnp.exe",
    "{title} \\udc80 ${document.title=1} &lt;.png",
)


def synthetic_rows(count: int, length: int = 384) -> Iterator[Row]:
    """Rows in 40 folders; every seventh has a hostile name."""
    random = np.random.default_rng(0)
    scale = np.arange(1, length + 1) ** -0.6
    centres = random.standard_normal((200, length)) * scale
    embedding = centres[0]
    for place in range(count):
        if place % COPY == COPY - 1:
            embedding = embedding + 0.02 * random.standard_normal(length) * scale
        else:
            embedding = centres[random.integers(200)] + 0.6 * random.standard_normal(length) * scale
        name = (
            f"{place:07d} {HOSTILE[place // 7 % len(HOSTILE)]}"
            if place % 7 == 0
            else f"picture {place:07d}.png"
        )
        path = f"/pictures/folder {place % 40:02d}/{name}"
        if place % UNREAD == UNREAD - 2:
            yield Row(path, f"{place:064x}", 0, 0, 10, None, None, None, None, None, 0, "no <b>picture</b>")
            continue
        vector = embedding.astype(np.float32)
        score, novelty = random.normal(-500, 40), random.gamma(2)
        more_novel_than = random.uniform(0, 100)
        size = (1024, 1024 + place % 3, 10_000 + place)
        yield Row(path, f"{place:064x}", *size, score, vector, vector, novelty, more_novel_than, 0, None)


def write_synthetic(file: Path, count: int, length: int = 384) -> None:
    """Write a table of so many pictures."""
    write_table(file, SETTINGS, length, synthetic_rows(count, length))


def planted(count: int) -> list[list[int]]:
    """The near copies among so many pictures."""
    seconds = range(COPY - 1, count, COPY)
    return [[place - 1, place] for place in seconds if (place - 1) % UNREAD != UNREAD - 2]
