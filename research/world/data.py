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

BLOCK = 1200  # pictures in a file
TRAINING = 36_000  # pictures that trainings take, unless they say otherwise


def world_id(side: int) -> str:
    """Twelve digits that change with anything that changes a picture."""
    rows = [list(labels.drawings(labels.split(name, 10 * len(KINDS)))) for name in labels.SPLITS]
    parts = [KINDS, rows, renderer.PACKAGES, renderer.SCRIPT.read_text(), BLOCK, side]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def _make(file: Path, script: Path, rows: labels.Labels, side: int) -> None:
    with whole(file) as partial, lzma.open(partial, "wb", preset=3) as content:
        np.save(content, renderer.pixels(script, labels.drawings(rows), side))


def _files(folder: Path, split: str, count: int, side: int) -> list[Path]:
    place = folder / world_id(side)
    return [place / f"{split}-{block:04d}.npy.xz" for block in range(-(-count // BLOCK))]


def make(folder: Path, split: str, count: int, side: int, processes: int | None = None) -> int:
    """Draw what is missing of the first `count` pictures of a split, BLOCK to a file; returns how many it drew.

    Args:
        folder: keeps what is drawn; a run that was stopped goes on from there. What another world left there stays unread.
        processes: how many draw at once; as many as there are cores by default.
    """
    files = _files(folder, split, count, side)
    missing = [number for number, file in enumerate(files) if not file.exists()]
    if missing:
        script, rows = renderer.install(folder), labels.split(split, BLOCK * len(files))
        with ThreadPoolExecutor(processes or os.cpu_count()) as pool:
            blocks = [rows.take(slice(BLOCK * number, BLOCK * (number + 1))) for number in missing]
            places = [files[number] for number in missing]
            list(pool.map(lambda file, block: _make(file, script, block, side), places, blocks))
    return BLOCK * len(missing)


def read(folder: Path, split: str, count: int, side: int, out: Tensor | None = None) -> Tensor:
    """The first `count` pictures that `make` has drawn: (count, 3, side, side) uint8, into `out` if it is given."""
    out = torch.empty(count, 3, side, side, dtype=torch.uint8) if out is None else out
    for part, file in zip(out.split(BLOCK), _files(folder, split, count, side), strict=True):
        with lzma.open(file) as content:
            block = torch.from_numpy(np.load(content))
        part.copy_(block[: len(part)].permute(0, 3, 1, 2))
    return out


def load_pictures(
    folder: Path,
    training: int = TRAINING,
    held_out: int = 2_000,
    side: int = 128,
    processes: int | None = None,
) -> Pictures:
    """The pictures to train on, then those held out, with their attributes; drawn where they are missing.

    Args:
        folder, side, processes: see `make`.
    """
    images = torch.empty(training + held_out, 3, side, side, dtype=torch.uint8)
    rows = []
    for name, part in zip(("training", "held_out"), images.split([training, held_out]), strict=True):
        make(folder, name, len(part), side, processes)
        read(folder, name, len(part), side, part)
        rows.append(labels.split(name, len(part)))
    return Pictures(
        images,
        torch.cat([found.classes for found in rows]),
        torch.arange(training + held_out) >= training,
        labels.CLASSES,
        attribution(),
        torch.cat([found.attributes for found in rows]),
        labels.NAMES,
    )
