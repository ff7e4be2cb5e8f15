"""The pictures of a table, as report and select look at them: which are rare, and which are alike."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch

from ..duplicates import find_duplicates
from .scorer import Settings
from .table import TableError, read_table

SCORE, NOVELTY = "score", "novelty"
_COLUMNS = ("path", "hash", "width", "height", "bytes", SCORE, NOVELTY, "more_novel_than", "error")


@dataclass(frozen=True, eq=False)
class Collection:
    """Columns of a table of N pictures, in its order.

    Attributes:
        settings: with which they were scored.
        paths, hashes: of N files. errors: why a file could not be read, or None.
        numbers: width, height, bytes, score, novelty, more_novel_than, each (N,) float64; NaN where there is none.
    """

    settings: Settings
    paths: list[str]
    hashes: list[str]
    errors: list[str | None]
    numbers: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def criteria(self) -> tuple[str, ...]:
        """Of score and novelty, those that the table has."""
        return tuple(name for name in (SCORE, NOVELTY) if np.isfinite(self.numbers[name]).any())

    def rarest_first(self, criterion: str) -> list[int]:
        """The pictures that have the number, by it: low scores or high novelty first; equal ones by path."""
        values = self.numbers[criterion] * (-1 if criterion == NOVELTY else 1)
        known = np.flatnonzero(np.isfinite(values)).tolist()
        return sorted(known, key=lambda place: (values[place], self.paths[place]))

    def best_first(self, group: list[int]) -> list[int]:
        """Duplicates in the order in which they are worth keeping: most pixels, then most bytes, then by path."""
        width, height, size = (self.numbers[name] for name in ("width", "height", "bytes"))
        return sorted(group, key=lambda one: (-width[one] * height[one], -size[one], self.paths[one]))


def read_collection(file: Path) -> Collection:
    """Read a table without its embeddings. Raises TableError, OSError."""
    table = read_table(file, _COLUMNS)
    texts = {name: table.data.column(name).to_pylist() for name in ("path", "hash", "error")}
    numbers = {name: table.numbers(name) for name in _COLUMNS if name not in texts}
    return Collection(table.settings, texts["path"], texts["hash"], texts["error"], numbers)


def duplicates_of(file: Path, collection: Collection, distance: float) -> list[list[int]]:
    """The groups of duplicates among the pictures of a table that could be read, each the best first; largest groups first.

    Raises:
        TableError: an embedding is not finite, or has no length.
    """
    readable = [place for place, error in enumerate(collection.errors) if error is None]
    embeddings = _embeddings(file, len(readable))
    hashes = [collection.hashes[place] or str(place) for place in readable]
    groups = [[readable[one] for one in group] for group in find_duplicates(hashes, embeddings, distance)]
    return sorted(map(collection.best_first, groups), key=lambda group: (-len(group), group[0]))


def _embeddings(file: Path, count: int) -> torch.Tensor:
    """The embeddings (count, d) of the pictures that could be read, a row group in memory at a time beside them."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(file, pre_buffer=False) as opened:
        length = opened.schema_arrow.field("embedding").type.list_size
        found = np.empty((count, length), np.float32)
        begin = 0
        for batch in opened.iter_batches(1024, columns=["embedding", "error"]):
            some: Any = batch.column("embedding").filter(batch.column("error").is_null())
            if some.null_count or begin + len(some) > count:
                raise TableError(f"{file} is damaged: a picture without error has no embedding")
            found[begin : begin + len(some)] = some.flatten().to_numpy().reshape(-1, length)
            begin += len(some)
    embeddings = torch.from_numpy(found)
    lengths = embeddings.norm(dim=1)
    if not (lengths.isfinite() & (lengths > 0)).all():
        raise TableError(f"{file} is damaged: an embedding is not finite, or has no length")
    return embeddings


def folder_and_name(path: str) -> tuple[str, str]:
    """The folder of a path, which may be of another system, and the name in it."""
    whole = (
        PureWindowsPath(path)
        if path[1:3] in (":\\", ":/") or path.startswith("\\\\")
        else PurePosixPath(path)
    )
    return str(whole.parent), whole.name
