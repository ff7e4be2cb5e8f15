"""What has been scored, kept in a file from run to run. A kill at any byte loses at most the entry being written."""

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from .scorer import Settings

_MAGIC = b"JEPA scores 1\n"
_HEAD = struct.Struct("<II")  # of an entry: the length of its body, and the CRC-32 of that
_LONGEST = 1 << 22  # bytes of a body


class JournalError(ValueError):
    """A journal cannot be used. The message names the file."""


class Entry(NamedTuple):
    """What is known of the content of a file, whatever its name.

    Attributes:
        hash: SHA-256 of its bytes, in hexadecimal.
        width, height: in pixels, turned as the picture is; 0 if it cannot be read.
        score: None without scores, or if it cannot be read.
        embedding, smoothed: (d,) float32; None if it cannot be read.
        time: when this was found, in microseconds since 1970, UTC.
        error: why it cannot be read or scored, or None.
    """

    hash: str
    width: int
    height: int
    score: float | None
    embedding: np.ndarray | None
    smoothed: np.ndarray | None
    time: int
    error: str | None


class Journal:
    """Entries by content and settings, in a file that only grows; open in one process at a time.

    Use it as a context manager. Entries made with other settings stay in the file and are not seen.

    Args:
        file: made if it is not there.

    Attributes:
        errors: why contents, by their hashes, could not be read or scored.

    Raises:
        JournalError: another process has it open, or it is a file of another kind. OSError: it cannot be read or written.
    """

    def __init__(self, file: Path, settings: Settings) -> None:
        self.file = file
        self._key = settings.key
        self._places: dict[str, int] = {}
        self.errors: dict[str, str] = {}
        self._lock = FileLock(file.with_name(f".{file.name}.lock"))
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise JournalError(
                f"{file} is in use: another process is scoring into the same output; wait for it, or use another"
            ) from None
        try:
            self._stream: Any = open(file, "a+b", buffering=0)  # noqa: SIM115 (closed by close)
            self._end = self._recovered()
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes use it."""
        self._stream.close()
        self._lock.release()

    def __len__(self) -> int:
        """Entries with these settings."""
        return len(self._places)

    def __contains__(self, content: str) -> bool:
        """Whether there is an entry for a content, by its hash."""
        return content in self._places

    def add(self, entry: Entry) -> None:
        """Write an entry; once this returns, a kill of the process does not lose it.

        Raises:
            OSError: it cannot be written; the file then ends with the entry before.
        """
        body = body_of(entry, self._key)
        data = _HEAD.pack(len(body), zlib.crc32(body)) + body
        try:
            written = 0
            while written < len(data):
                written += self._stream.write(data[written:])
        except BaseException:
            self._stream.truncate(self._end)
            raise
        self._known(entry.hash, entry.error, self._end)
        self._end += len(data)

    def _known(self, content: str, error: str | None, place: int) -> None:
        self._places[content] = place
        if error is not None:
            self.errors[content] = error

    def __getitem__(self, content: str) -> Entry:
        """The entry for a content, by its hash. Raises KeyError if there is none."""
        self._stream.seek(self._places[content])
        length, _ = _HEAD.unpack(self._stream.read(_HEAD.size))
        return entry_of(self._stream.read(length))

    def _recovered(self) -> int:
        """Find the entries, and cut off what a kill left of the last one. Returns where the next one goes."""
        self._stream.seek(0)
        with open(self.file, "rb") as stream:
            begin = stream.read(len(_MAGIC))
            if not _MAGIC.startswith(begin):
                raise JournalError(
                    f"{self.file} is no journal of scores; move it away, or use another output"
                )
            if begin != _MAGIC:  # new, or killed at once
                self._stream.truncate(0)
                self._stream.write(_MAGIC)
                return len(_MAGIC)
            end = len(_MAGIC)
            for place, body in _bodies(stream):
                stated = json.loads(body[: body.index(b"\n")])
                if stated["key"] == self._key:
                    self._known(stated["hash"], stated["error"], place)
                end = place + _HEAD.size + len(body)
        self._stream.truncate(end)
        return end


class Kept(dict[str, Entry]):
    """Entries by content, as in a journal but in memory."""

    @property
    def errors(self) -> dict[str, str]:
        """Why contents, by their hashes, could not be read or scored."""
        return {content: entry.error for content, entry in self.items() if entry.error is not None}

    def add(self, entry: Entry) -> None:
        """Keep an entry."""
        self[entry.hash] = entry


def _bodies(stream: Any) -> Iterator[tuple[int, bytes]]:
    """The place and the body of each whole entry, from the stream's position to the first that is not whole."""
    place = stream.tell()
    while len(head := stream.read(_HEAD.size)) == _HEAD.size:
        length, check = _HEAD.unpack(head)
        if length > _LONGEST or len(body := stream.read(length)) < length or zlib.crc32(body) != check:
            return
        yield place, body
        place += _HEAD.size + length


def body_of(entry: Entry, key: str) -> bytes:
    """An entry as bytes: a line of JSON, then embedding and smoothed embedding."""
    stated = entry._asdict()
    arrays = [stated.pop("embedding"), stated.pop("smoothed")]
    line = json.dumps({"key": key, **stated}).encode() + b"\n"
    return line + b"".join(one.astype("<f4").tobytes() for one in arrays if one is not None)


def entry_of(body: bytes) -> Entry:
    """What body_of made of an entry."""
    line, _, numbers = body.partition(b"\n")
    stated = json.loads(line)
    del stated["key"]
    both = np.frombuffer(numbers, "<f4").reshape(2, -1) if numbers else (None, None)
    return Entry(**stated, embedding=both[0], smoothed=both[1])


def journal_of(output: Path) -> Path:
    """The journal that belongs to an output file, beside it."""
    return output.with_name(output.name + ".journal")
