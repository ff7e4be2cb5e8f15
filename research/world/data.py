"""The world's pictures: drawn once in blocks, kept compressed, and given to trainings as Pictures."""

import hashlib
import json
import lzma
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from research.harness.program import whole
from research.training.pictures import Pictures
from research.world import labels, renderer
from research.world.classes import KINDS, attribution

BLOCK = 240  # pictures in a file


def world_id(side: int) -> str:
    """Twelve digits that change with anything that changes a picture."""
    parts = [renderer.SCRIPT.read_text(), renderer.PACKAGES, KINDS, labels.SEEDS, labels.RAREST, BLOCK, side]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def _make(file: Path, script: Path, rows: labels.Labels, side: int) -> None:
    with whole(file) as partial, lzma.open(partial, "wb", preset=1) as content:
        np.save(content, renderer.pixels(script, labels.drawings(rows), side))


def cached(folder: Path, split: str, count: int, side: int = 128, processes: int | None = None) -> Tensor:
    """The first `count` pictures of a split: (count, 3, side, side) uint8, on white.

    Args:
        folder: keeps what is drawn; a run that was stopped goes on from there. What another world left there stays unread.
        processes: how many draw at once, each BLOCK pictures; as many as there are cores by default.
    """
    place = folder / world_id(side)
    files = [place / f"{split}-{block:04d}.npy.xz" for block in range(-(-count // BLOCK))]
    rows = labels.split(split, BLOCK * len(files))
    missing = [number for number, file in enumerate(files) if not file.exists()]
    if missing:
        script = renderer.install(folder)
        with ThreadPoolExecutor(processes or os.cpu_count()) as pool:
            chosen = (rows.take(slice(BLOCK * number, BLOCK * (number + 1))) for number in missing)
            made = [
                pool.submit(_make, files[number], script, block, side)
                for number, block in zip(missing, chosen, strict=True)
            ]
            for future in made:
                future.result()
    images = torch.empty(BLOCK * len(files), 3, side, side, dtype=torch.uint8)
    for number, file in enumerate(files):
        with lzma.open(file) as content:
            images[BLOCK * number : BLOCK * (number + 1)] = torch.from_numpy(np.load(content))
    return images[:count]


def load_pictures(
    folder: Path, training: int = 20_000, held_out: int = 2_000, side: int = 64, processes: int | None = None
) -> Pictures:
    """The pictures to train on and those held out, with their attributes.

    Args:
        side: that is trained on; the pictures have twice that.
        folder, processes: see `cached`.
    """
    counts = {"training": training, "held_out": held_out}
    rows = [labels.split(name, count) for name, count in counts.items()]
    images = [cached(folder, name, count, 2 * side, processes) for name, count in counts.items()]
    return Pictures(
        torch.cat(images),
        torch.cat([found.classes for found in rows]),
        torch.arange(training + held_out) >= training,
        labels.CLASSES,
        attribution(),
        torch.cat([found.attributes for found in rows]),
        labels.NAMES,
    )
