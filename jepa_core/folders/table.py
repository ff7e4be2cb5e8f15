"""Tables of scores in parquet, and references as tables. Only this file needs pyarrow."""

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..reference import Reference, ReferencePart
from .scorer import Settings, settings_of

METADATA = b"jepa_settings"
_ROWS = 1024  # in memory at a time while a table is written


class TableError(ValueError):
    """A file is no table of scores. The message names the file."""


class Row(NamedTuple):
    """A line of a table: a file, and what is known of it.

    Attributes:
        path: absolute, as listing.text_of_path writes it; of a picture of a reference only its number.
        hash: SHA-256 of its bytes in hexadecimal, "" if unknown.
        width, height: in pixels, as the picture is shown; 0 if unknown. bytes: its length.
        score: lower is rarer. embedding, smoothed: (d,) float32. All None if it could not be read.
        novelty, more_novel_than: higher is rarer, see Comparison.of. None without a reference.
        time: when it was scored, in microseconds since 1970, UTC.
        error: why it could not be read or scored, or None.
    """

    path: str
    hash: str
    width: int
    height: int
    bytes: int
    score: float | None
    embedding: np.ndarray | None
    smoothed: np.ndarray | None
    novelty: float | None
    more_novel_than: float | None
    time: int
    error: str | None


@dataclass(frozen=True, eq=False)
class Table:
    """A table of scores.

    Attributes:
        settings: with which its pictures were scored.
        data: a pyarrow.Table with the columns of Row, or some of them.
    """

    settings: Settings
    data: Any

    def __len__(self) -> int:
        return int(self.data.num_rows)

    def numbers(self, name: str) -> np.ndarray:
        """A column of numbers as float64 (N,); NaN where there is none."""
        column = self.data.column(name).cast("float64").to_numpy()
        return np.asarray(column, dtype=np.float64)

    def vectors(self, name: str) -> np.ndarray:
        """The embeddings or smoothed embeddings (N, d), float32; a row of NaN where there is none."""
        length = self.data.schema.field(name).type.list_size
        found = np.full((len(self), length), np.nan, np.float32)
        begin = 0
        for chunk in self.data.column(name).chunks:
            there = chunk.is_valid().to_numpy(zero_copy_only=False)
            # flatten leaves out the rows without numbers
            found[begin : begin + len(chunk)][there] = chunk.flatten().to_numpy().reshape(-1, length)
            begin += len(chunk)
        return found


def schema_of(settings: Settings, length: int) -> Any:
    """The pyarrow.Schema of a table with embeddings of this length."""
    import pyarrow as pa

    vector = pa.list_(pa.float32(), length)
    kinds = {
        **dict.fromkeys(("path", "hash", "error"), pa.string()),
        **{"width": pa.int32(), "height": pa.int32(), "bytes": pa.int64()},
        **dict.fromkeys(("score", "novelty", "more_novel_than"), pa.float64()),
        **{"embedding": vector, "smoothed": vector, "time": pa.timestamp("us", "UTC")},
    }
    fields = [pa.field(name, kinds[name]) for name in Row._fields]
    return pa.schema(fields, {METADATA: settings.text.encode()})


def write_table(file: Path, settings: Settings, length: int, rows: Iterable[Row]) -> None:
    """Write rows as parquet, a thousand at a time. The file appears whole or not at all, and replaces an older one.

    Args:
        length: d, of the embeddings.

    Raises:
        OSError: it cannot be written.
    """
    import pyarrow.parquet as pq

    schema = schema_of(settings, length)
    remaining = iter(rows)
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".saving-") as folder:
        with pq.ParquetWriter(Path(folder) / "table", schema) as writer:
            while some := list(islice(remaining, _ROWS)):
                writer.write_batch(_batch(some, schema))
        os.replace(Path(folder) / "table", file)


def _batch(rows: Sequence[Row], schema: Any) -> Any:
    import pyarrow as pa

    columns = []
    for name, values in zip(Row._fields, zip(*rows, strict=True), strict=True):
        kind = schema.field(name).type
        if not pa.types.is_fixed_size_list(kind):
            columns.append(pa.array(values, kind))
            continue
        missing = np.array([value is None for value in values])
        numbers = np.zeros((len(rows), kind.list_size), np.float32)
        for place in np.flatnonzero(~missing):
            numbers[place] = values[place]
        flat = pa.array(numbers.reshape(-1))
        columns.append(pa.FixedSizeListArray.from_arrays(flat, type=kind, mask=pa.array(missing)))
    return pa.record_batch(columns, schema=schema)


def read_settings(file: Path) -> Settings:
    """The settings of a table.

    Raises:
        TableError: no table of scores. OSError: it cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(file)
        settings = settings_of((schema.metadata or {})[METADATA].decode())
        length = schema.field("embedding").type.list_size
        if not schema.equals(schema_of(settings, length)):
            raise TableError(f"{file} has other columns than a table of scores")
    except TableError:
        raise
    except (pa.ArrowInvalid, LookupError, ValueError, TypeError, AttributeError) as error:
        raise TableError(
            f"{file} is not a table of scores; make one with python -m jepa_core score"
        ) from error
    return settings


def read_table(file: Path, columns: Sequence[str] | None = None) -> Table:
    """Read a table of write_table.

    Args:
        columns: names of those to read; None for all.

    Raises:
        TableError: no table of scores, or a damaged one. OSError: it cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    settings = read_settings(file)
    try:
        return Table(settings, pq.read_table(file, columns=columns and list(columns)))
    except (pa.ArrowException, OSError) as error:
        raise TableError(f"{file} is damaged: {error}") from error


# --- references -----------------------------------------------------------------------------------------------------


def reference_of(table: Table) -> Reference:
    """The pictures of a table that were scored, in their order, as a reference.

    Raises:
        ValueError: there is none, or there are numbers that are not finite.
    """
    embeddings, smoothed = (table.vectors(name) for name in ("embedding", "smoothed"))
    scored = table.settings.scoring is not None
    errors = table.data.column("error")
    good = errors.is_null().to_numpy()
    scores = table.numbers("score")
    if not good.any():
        raise ValueError("it holds no picture that was scored")
    arrays = [one[good] for one in (embeddings, smoothed, *([scores] if scored else []))]
    if not all(np.isfinite(one).all() for one in arrays):
        raise ValueError("it holds numbers that are not finite")
    settings = table.settings
    own = (settings.encoder, settings.fingerprint, settings.image_size)
    return Reference((ReferencePart(*own, *map(torch.from_numpy, arrays)),), settings.how)


def settings_of_reference(reference: Reference) -> Settings:
    """The settings with which a reference of one encoder was made.

    Raises:
        ValueError: it is of several encoders.
    """
    if len(reference.parts) != 1:
        raise ValueError(f"it is of {len(reference.parts)} encoders, a table of one")
    part = reference.parts[0]
    return Settings(part.encoder, part.fingerprint, part.image_size, **reference.how)


def rows_of_reference(reference: Reference, time: int) -> Iterator[Row]:
    """The pictures of a reference of one encoder as rows of a table. Their files are not known.

    Args:
        time: for the column.
    """
    (part,) = reference.parts
    scores = [None] * len(reference) if part.scores is None else part.scores.tolist()
    each = zip(scores, part.embeddings.numpy(), part.smoothed.numpy(), strict=True)
    for number, (score, embedding, smoothed) in enumerate(each):
        yield Row(f"picture {number}", "", 0, 0, 0, score, embedding, smoothed, None, None, time, None)
