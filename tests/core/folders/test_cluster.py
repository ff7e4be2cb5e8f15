"""--ray: two workers on this machine, one of them killed, give the table that one process gives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from jepa_core.folders.journal import Journal, Kept, body_of, entry_of, journal_of
from jepa_core.folders.table import read_table
from tests.conftest import ROOT
from tests.core.folders.conftest import SIZE, save, scorer_of

pytest.importorskip("ray")
linux = pytest.mark.skipif(sys.platform != "linux", reason="finds workers in /proc")
COUNT = 96


def started(*arguments: object) -> subprocess.Popen[str]:
    """python -m jepa_core score, with two cores for Ray whatever the machine has."""
    words = [sys.executable, "-m", "jepa_core", "score", *map(str, arguments), "--image-size", str(SIZE)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "RAY_OVERRIDE_RESOURCES": '{"CPU": 2}',
        "RAY_worker_niceness": "0",  # not behind whatever else runs
    }
    return subprocess.Popen(
        [*words, "--projection", "8", "--device", "cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def finished(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return out


def actors(parent: int) -> list[int]:
    """The processes of Ray's actors below a process."""
    parents, found = {}, []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stated = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                words = (entry / "cmdline").read_bytes()
            except OSError:  # it has ended
                continue
            parents[int(entry.name)] = int(stated[1])
            if words.startswith(b"ray::") and b"Map" in words:
                found.append(int(entry.name))

    def below(one: int) -> bool:
        while one > 1:
            one = parents.get(one, 0)
            if one == parent:
                return True
        return False

    return [one for one in found if below(one)]


def rows(table: Path) -> list[dict[str, Any]]:
    """A table without the times."""
    found: list[dict[str, Any]] = read_table(table).data.drop_columns(["time"]).to_pylist()
    return found


@linux
@pytest.mark.long
def test_with_a_worker_killed_the_table_is_that_of_one_process(tmp_path, encoder_folder):
    folder = tmp_path / "in"
    for index in range(COUNT):
        save(folder / f"{index}.png", index, (400, 300))
    (folder / "twin.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "broken.png").write_bytes(b"no picture")
    alone, together = tmp_path / "alone.parquet", tmp_path / "together.parquet"
    finished(started(folder, "--encoder", encoder_folder, "--out", alone))
    process = started(folder, "--encoder", encoder_folder, "--out", together, "--ray", "local")
    journal = journal_of(together)
    killed: set[int] = set()
    deadline = time.monotonic() + 500
    while not killed and process.poll() is None and time.monotonic() < deadline:
        # the first results are there, and there is more to do
        workers = actors(process.pid)
        if len(workers) >= 2 and journal.exists() and journal.stat().st_size > 1000:
            os.kill(workers[0], signal.SIGKILL)
            killed.add(workers[0])
        time.sleep(0.02)
    said = finished(process)
    assert killed
    assert f"{COUNT + 2} pictures: {COUNT} scored now, 1 not readable" in said
    assert rows(together) == rows(alone)
    with Journal(journal, scorer_of(encoder_folder).settings) as kept:
        assert len(kept) == COUNT + 1
    again = finished(started(folder, "--encoder", encoder_folder, "--out", together, "--ray", "local"))
    assert f"{COUNT + 2} pictures: 0 scored now" in again


def test_an_address_without_a_cluster_is_named(tmp_path, encoder_folder):
    save(tmp_path / "in" / "a.png")
    process = started(
        tmp_path / "in", "--encoder", encoder_folder, "--out", tmp_path / "s.parquet", "--ray", "auto"
    )
    _, err = process.communicate(timeout=600)
    assert process.returncode == 2
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: --ray auto: no Ray cluster there")


def test_entries_travel_as_bytes(tmp_path, encoder_folder):
    scorer = scorer_of(encoder_folder)
    from jepa_core.folders.run import score_files

    kept = Kept()
    broken = tmp_path / "b.png"
    broken.write_bytes(b"no picture")
    run = score_files([str(save(tmp_path / "a.png")), str(broken)], scorer, kept)
    assert run.scored == 1
    assert len(kept.errors) == 1
    for entry in kept.values():
        back = entry_of(body_of(entry, ""))
        assert back._replace(embedding=None, smoothed=None) == entry._replace(embedding=None, smoothed=None)
        assert (back.embedding is None) == (entry.embedding is None)
        assert entry.embedding is None or (back.embedding == entry.embedding).all()
