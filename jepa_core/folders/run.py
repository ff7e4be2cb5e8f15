"""Scoring files: threads read and prepare pictures while the encoder works on those before."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from threading import Lock
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..precision import full_precision
from .comparison import Comparison
from .journal import Entry, Journal, Kept
from .listing import text_of_path
from .reading import UNREADABLE, PictureError, hash_of, opened_picture, pixels_of
from .scorer import Found, Scorer
from .table import Row

_MOST_THREADS = 16
# Pictures of more pixels do not wait for an accelerator as they are, since they take much memory.
_LARGE = 4_000_000
# Pictures of more pixels are read one at a time; each takes up to 40 bytes a pixel meanwhile.
_HUGE = 16_000_000
_CHUNK = 1024


class ReadFile(NamedTuple):
    """A file after it was read.

    Attributes:
        path: as it was given.
        bytes: its length. hash: SHA-256 of its bytes in hexadecimal, "" if they could not be read.
        width, height: in pixels, as the picture is shown; 0 if it was not decoded.
        prepared: what Scorer.score takes; None if it was not wanted, or could not be read.
        error: why it could not be read, or None.
        lasting: the error lies in the bytes, and another try would end alike.
    """

    path: str
    bytes: int = 0
    hash: str = ""
    width: int = 0
    height: int = 0
    prepared: Tensor | None = None
    error: str | None = None
    lasting: bool = False


class Reader:
    """Reads files for a scorer, from several threads at once.

    Args:
        wanted: called with the hash of each file's bytes, by one thread at a time; whether its pixels are needed.
    """

    def __init__(self, scorer: Scorer, wanted: Callable[[str], bool]) -> None:
        self._scorer = scorer
        self._wanted = wanted
        self._asking = Lock()
        self._huge = Lock()

    def __call__(self, path: str) -> ReadFile:
        """Read a file; a picture that cannot be read is an error in what is returned."""
        read = ReadFile(path)
        try:
            with open(path, "rb") as file:
                before = os.fstat(file.fileno())
                read = read._replace(bytes=before.st_size, hash=hash_of(file))
                with self._asking:
                    if not self._wanted(read.hash):
                        return read
                height, width, prepared = self._prepared(file)
                after = os.fstat(file.fileno())
        except PictureError as error:
            return read._replace(error=str(error), lasting=True)
        except UNREADABLE as error:
            return read._replace(error=_said(error))
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            return read._replace(error="it changed while it was read; run again")
        return read._replace(height=height, width=width, prepared=prepared)

    def _prepared(self, file: BinaryIO) -> tuple[int, int, Tensor]:
        if not os.fstat(file.fileno()).st_size:
            raise PictureError("it is empty")
        with opened_picture(file) as opened:
            pixels = opened.width * opened.height
            with self._huge if pixels > _HUGE else nullcontext():
                picture = pixels_of(opened)
                height, width = picture.shape[:2]
                return height, width, self._scorer.prepare(picture, here=pixels > _LARGE)


def read_bytes(path: str) -> ReadFile:
    """A file's length and hash; that it cannot be read is an error in what is returned."""
    try:
        with open(path, "rb") as file:
            return ReadFile(path, os.fstat(file.fileno()).st_size, hash_of(file))
    except OSError as error:
        return ReadFile(path, error=_said(error))


def _said(error: Exception) -> str:
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return said.splitlines()[0][:300]


class File(NamedTuple):
    """A file of a run: where it is, its length and hash, and the error if it could not be read."""

    path: str
    bytes: int
    hash: str
    error: str | None


@dataclass
class Run:
    """What happened in a run.

    Attributes:
        files: all, in the order in which they were given.
        scored: contents that the encoder scored.
        seconds: of the whole run. waiting: of them, how long the encoder waited for pictures to be read.
    """

    files: list[File] = field(default_factory=list)
    scored: int = 0
    seconds: float = 0.0
    waiting: float = 0.0

    def errors(self, journal: Journal) -> list[tuple[str, str]]:
        """The files that could not be read or scored, and why, in their order."""
        own = {file.hash: file.error for file in self.files if file.error and file.hash}
        each = (
            (file.path, file.error or journal.errors.get(file.hash) or own.get(file.hash))
            for file in self.files
        )
        return [(path, error) for path, error in each if error]


def score_files(
    paths: Sequence[str],
    scorer: Scorer,
    journal: Journal | Kept,
    *,
    batch: int | None = None,
    threads: int | None = None,
    on_file: Callable[[], None] = lambda: None,
    on_pass: Callable[[], None] = lambda: None,
) -> Run:
    """Score picture files, those of the same content once, and those that the journal knows not again.

    Args:
        journal: with the scorer's settings; whatever is found is in it at once.
        batch: pictures that are scored together; None for what suits the device.
        threads: that read; None for one for each core.
        on_file: called after each file. on_pass: called after each encoder pass. Either may raise to stop.

    Raises:
        OSError: the journal cannot be written.
    """
    run = Run()
    begun = time.perf_counter()
    claimed: set[str] = set()

    def wanted(content: str) -> bool:
        new = content not in journal and content not in claimed
        claimed.add(content)
        return new

    size = batch or scorer.batch
    threads = threads or min(os.cpu_count() or 1, _MOST_THREADS)
    pending: list[ReadFile] = []

    def finish() -> None:
        for entry in _entries(scorer, pending, on_pass):
            journal.add(entry)
            run.scored += entry.error is None
            on_file()
        pending.clear()

    # readers switch precision as the encoder does: under the outermost switch, threads cannot undo each other's
    with (
        full_precision(scorer.encoder.weight.device),
        _ahead(Reader(scorer, wanted), paths, threads, size) as reads,
    ):
        while True:
            asked = time.perf_counter()
            read = next(reads, None)
            run.waiting += time.perf_counter() - asked
            if read is None:
                break
            run.files.append(File(read.path, read.bytes, read.hash, read.error))
            if read.prepared is not None:
                pending.append(read)
                if len(pending) == size:
                    finish()
                continue
            if read.lasting:
                journal.add(_entry(read, error=read.error))
            on_file()
        finish()
    run.seconds = time.perf_counter() - begun
    return run


@contextmanager
def _ahead(
    read: Callable[[str], ReadFile], paths: Iterable[str], threads: int, batch: int
) -> Iterator[Iterator[ReadFile]]:
    """What reading gives, in the order of the paths: as many files ahead as the threads and a batch need."""
    own = torch.get_num_threads()
    # each of these threads works alone; together they have as many as there are cores
    pool = ThreadPoolExecutor(threads, "reader", torch.set_num_threads, (1,))
    remaining = iter(paths)
    waiting: deque[Future[ReadFile]] = deque()

    def reads() -> Iterator[ReadFile]:
        waiting.extend(pool.submit(read, path) for path in islice(remaining, 2 * threads + batch))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(read, path) for path in islice(remaining, 1))

    try:
        yield reads()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(own)  # threads that begin later take the last number that was set


def _entries(scorer: Scorer, reads: Sequence[ReadFile], on_pass: Callable[[], None]) -> Iterator[Entry]:
    """What the encoder makes of files that were read; if it fails at one of them, of each alone."""
    if not reads:
        return
    try:
        found = scorer.score([read.prepared for read in reads if read.prepared is not None], on_pass)
    except ValueError as error:
        if len(reads) == 1:
            yield _entry(reads[0], error=str(error))
            return
        for read in reads:
            yield from _entries(scorer, [read], on_pass)
        return
    for read, one in zip(reads, found, strict=True):
        yield _entry(read, one)


def _entry(read: ReadFile, found: Found | None = None, error: str | None = None) -> Entry:
    now = time.time_ns() // 1000
    size = (read.width, read.height)
    if found is None:
        return Entry(read.hash, *size, None, None, None, now, error)
    vectors = (found.embedding.numpy(), found.smoothed.numpy())
    return Entry(read.hash, *size, found.score, *vectors, now, None)


def rows_of(run: Run, journal: Journal, comparison: Comparison | None = None) -> Iterator[Row]:
    """The rows of a run's table, in the order of its files."""
    now = time.time_ns() // 1000
    # of files of one content only the first was read in full
    errors = {file.hash: file.error for file in run.files if file.error}
    files = iter(run.files)
    while some := list(islice(files, _CHUNK)):
        entries = [
            journal[file.hash]
            if file.hash in journal
            else Entry(file.hash, 0, 0, None, None, None, now, file.error or errors[file.hash])
            for file in some
        ]
        beside = _beside(entries, comparison)
        for file, entry in zip(some, entries, strict=True):
            novelty, share = beside.get(entry.hash, (None, None))
            yield Row(
                text_of_path(file.path),
                entry.hash,
                entry.width,
                entry.height,
                file.bytes,
                entry.score,
                entry.embedding,
                entry.smoothed,
                novelty,
                share,
                entry.time,
                entry.error,
            )


def _beside(entries: Sequence[Entry], comparison: Comparison | None) -> dict[str, tuple[float, float | None]]:
    """Novelty, and the share of the reference that is less novel, by content, for those that have embeddings."""
    known = {entry.hash: entry.embedding for entry in entries if entry.embedding is not None}
    if comparison is None or not known:
        return {}
    embeddings = torch.from_numpy(np.stack(list(known.values())))
    return dict(zip(known, comparison.of(embeddings), strict=True))
