"""The journal: what was written is there after a kill at any byte, and a broken end is cut off."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jepa_core.folders.journal import Entry, Journal, JournalError
from jepa_core.folders.scorer import Settings
from tests.conftest import ROOT

SETTINGS = Settings("tiny", "f" * 64, 28, "squash", "on", "exact")


def entry(number: int, error: str | None = None) -> Entry:
    content = f"{number:064x}"
    if error:
        return Entry(content, 0, 0, None, None, None, 7, error)
    vectors = np.random.default_rng(number).standard_normal((2, 5)).astype(np.float32)
    return Entry(content, 40, 30, number / 7, *vectors, 10**15 + number, None)


def same(one: Entry, other: Entry) -> bool:
    return repr(one) == repr(other)


def entries_of(file: Path) -> list[bytes]:
    """The bodies in a journal, by a plain walk through it."""
    content, place, bodies = file.read_bytes(), len(b"JEPA scores 1\n"), []
    while place < len(content):
        length, check = struct.unpack_from("<II", content, place)
        bodies.append(content[place + 8 : place + 8 + length])
        assert zlib.crc32(bodies[-1]) == check
        place += 8 + length
    return bodies


def written(file: Path, count: int = 4) -> list[Entry]:
    entries = [entry(number) for number in range(count - 1)] + [entry(99, "line 1\nb\u00e4d \udcff")]
    with Journal(file, SETTINGS) as journal:
        for one in entries:
            journal.add(one)
    return entries


def test_entries_come_back_to_the_bit(tmp_path):
    entries = written(tmp_path / "a")
    with Journal(tmp_path / "a", SETTINGS) as journal:
        assert len(journal) == 4
        assert all(same(journal[one.hash], one) for one in reversed(entries))
        assert journal.errors == {entries[-1].hash: entries[-1].error}
        assert "0" * 63 + "9" not in journal
        with pytest.raises(KeyError):
            journal["none"]
    assert len(entries_of(tmp_path / "a")) == 4


def test_after_a_kill_at_any_byte_all_that_was_whole_is_there(tmp_path):
    entries = written(tmp_path / "a")
    content = (tmp_path / "a").read_bytes()
    bodies = entries_of(tmp_path / "a")
    ends = np.cumsum([len(b"JEPA scores 1\n"), *(8 + len(body) for body in bodies)])
    for length in range(len(content) + 1):
        file = tmp_path / "b"
        file.write_bytes(content[:length])
        whole = int((ends[1:] <= length).sum())
        with Journal(file, SETTINGS) as journal:
            assert [one.hash in journal for one in entries] == [i < whole for i in range(4)]
            for one in entries[whole:]:
                journal.add(one)
            assert all(same(journal[one.hash], one) for one in entries)
        assert file.read_bytes() == content


def test_a_changed_byte_cuts_off_what_follows_and_is_never_read(tmp_path):
    entries = written(tmp_path / "a")
    content = (tmp_path / "a").read_bytes()
    for place in range(len(b"JEPA scores 1\n"), len(content)):
        changed = bytearray(content)
        changed[place] ^= 0x55
        (tmp_path / "b").write_bytes(changed)
        with Journal(tmp_path / "b", SETTINGS) as journal:
            assert all(same(journal[one.hash], one) for one in entries if one.hash in journal)
            assert len(journal) < 4


def test_entries_of_other_settings_stay_and_are_not_seen(tmp_path):
    entries = written(tmp_path / "a")
    with Journal(tmp_path / "a", replace(SETTINGS, fit="crop")) as journal:
        assert len(journal) == 0
        assert not journal.errors
        journal.add(entry(0))
    with Journal(tmp_path / "a", replace(SETTINGS, encoder="renamed")) as journal:
        assert len(journal) == 4
        assert same(journal[entries[0].hash], entries[0])
    assert len(entries_of(tmp_path / "a")) == 5


@pytest.mark.parametrize("content", [b"hello", b"\x89PNG\r\n\x1a\n", b"JEPA scores 2\n"])
def test_another_file_is_refused_and_left_alone(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(JournalError, match="is no journal of scores"):
        Journal(tmp_path / "a", SETTINGS)
    assert (tmp_path / "a").read_bytes() == content


def test_one_process_at_a_time(tmp_path):
    code = (
        "from pathlib import Path; from jepa_core.folders.journal import Journal; "
        "from jepa_core.folders.scorer import Settings; import sys; "
        f"Journal(Path(sys.argv[1]), {SETTINGS!r})"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a")]
    with Journal(tmp_path / "a", SETTINGS):
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert "is in use" in done.stderr
    assert subprocess.run(command, capture_output=True, cwd=ROOT).returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full")
def test_a_full_disk_is_an_error_and_leaves_what_was_there(tmp_path, monkeypatch):
    entries = written(tmp_path / "a")
    before = (tmp_path / "a").read_bytes()
    with Journal(tmp_path / "a", SETTINGS) as journal:
        stream = journal._stream

        class Full:
            """Takes a few bytes, then none."""

            left = 20

            def write(self, data: bytes) -> int:
                if not self.left:
                    with open("/dev/full", "wb", buffering=0) as full:
                        return full.write(data)
                some, self.left = data[: self.left], 0
                return stream.write(some)

            def truncate(self, size: int) -> None:
                stream.truncate(size)

            def close(self) -> None:
                stream.close()

        monkeypatch.setattr(journal, "_stream", Full())
        with pytest.raises(OSError, match="No space"):
            journal.add(entry(50))
    assert (tmp_path / "a").read_bytes() == before
    with Journal(tmp_path / "a", SETTINGS) as journal:
        assert len(journal) == len(entries)
    assert os.listdir(tmp_path).count("a") == 1
