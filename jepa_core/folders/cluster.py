"""Scoring files on the machines of a Ray cluster, which all reach them under the same paths.

Two passes with Ray Data: tasks hash the files, and actors, each with the encoder, score every new content once. What they
find is written into the journal here, at once. Ray starts what was lost with a worker again.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from .journal import Journal, Kept, body_of, entry_of
from .listing import path_of_text, text_of_path
from .options import OptionError, refused, scorer_of
from .run import File, Run, read_bytes, score_files
from .scorer import Scorer, settings_of

LOCAL = "local"  # the address that starts a cluster on this machine
_HASHED, _SCORED = 256, 16  # files of a task
_CORES = 2  # of an actor without a GPU
_AGAIN = "it changed while it was read; run again"


@contextmanager
def connected(address: str) -> Iterator[None]:
    """A connection to a Ray cluster, or with "local" one on this machine. Raises OptionError."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise OptionError(f'{error.name} is missing; pip install "jepa-guidance[cluster]"') from error
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody was asked
    own: dict[str, Any] = (
        {"_node_ip_address": "127.0.0.1", "include_dashboard": False} if address == LOCAL else {}
    )
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False, **own)
    except (ConnectionError, ValueError, RuntimeError) as error:
        why = f"no Ray cluster there ({str(error).splitlines()[0][:100]}); start one with ray start, or say local"
        raise refused("--ray", address, why) from error
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield
    except ray.exceptions.RayError as error:
        said = [line for line in str(error).splitlines() if line.strip()][-1]
        raise refused("--ray", address, f"{said.strip():.300}; what was scored is kept: run again") from error
    finally:
        ray.shutdown()


def score_on_cluster(
    paths: Sequence[str],
    scorer: Scorer,
    journal: Journal,
    options: argparse.Namespace,
    on_file: Callable[[], None] = lambda: None,
) -> Run:
    """As score_files, on all machines of the cluster that is connected.

    Args:
        options: of add_scoring; every actor makes its own scorer of them.

    Raises:
        OptionError: an actor cannot make the scorer, or makes another one. OSError: the journal cannot be written.
    """
    run, begun = Run(), time.perf_counter()
    for row in sorted(_rows(_hashed(paths)), key=lambda row: int(row["index"])):
        run.files.append(File(paths[row["index"]], row["bytes"], row["hash"], row["error"] or None))
    first: dict[str, int] = {}
    for index, file in enumerate(run.files):
        if file.hash and file.hash not in journal:
            first.setdefault(file.hash, index)
    for _ in range(len(paths) - len(first)):
        on_file()
    wanted = [(paths[index], content) for content, index in first.items()]
    for row in _rows(_scored(wanted, scorer, options)) if wanted else ():
        index = first[row["hash"]]
        if row["entry"]:
            entry = entry_of(row["entry"])
            journal.add(entry)
            run.scored += entry.error is None
        else:
            run.files[index] = run.files[index]._replace(error=row["error"])
        on_file()
    run.seconds = time.perf_counter() - begun
    return run


def _rows(dataset: Any) -> Iterable[dict[str, Any]]:
    """The rows of a data set as they come."""
    return dataset.iter_rows()  # type: ignore[no-any-return]


def _dataset(rows: list[dict[str, Any]], size: int) -> Any:
    """Rows in blocks of this many; a worker takes a block at a time."""
    import ray.data

    return ray.data.from_items(rows, override_num_blocks=max(1, -(-len(rows) // size)))


def _hashed(paths: Sequence[str]) -> Any:
    rows = [{"index": index, "path": text_of_path(path)} for index, path in enumerate(paths)]
    return _dataset(rows, _HASHED).map_batches(_hash, batch_size=_HASHED)


def _hash(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Length and hash of files, or why they cannot be read."""
    reads = [read_bytes(path_of_text(path)) for path in batch["path"]]
    return {
        "index": batch["index"],
        "bytes": np.array([read.bytes for read in reads]),
        "hash": _texts(read.hash for read in reads),
        "error": _texts(read.error or "" for read in reads),
    }


def _scored(files: Sequence[tuple[str, str]], scorer: Scorer, options: argparse.Namespace) -> Any:
    """The data set of what is found of files (path, hash): "hash", and "entry" or "error"."""
    import ray.data

    rows = [{"path": text_of_path(path), "hash": content} for path, content in files]
    count, resources = _actors()
    stated = {name: value for name, value in vars(options).items() if name != "run"}
    return _dataset(rows, _SCORED).map_batches(
        _Actor,
        fn_constructor_args=(stated, scorer.settings.text, resources["num_cpus"]),
        batch_size=_SCORED,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=count, initial_size=count),
        **resources,
    )


def _actors() -> tuple[int, dict[str, int]]:
    """How many actors the cluster has room for, and what each takes: a GPU, or some of a machine's cores."""
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if gpus := int(sum(one.get("GPU", 0) for one in machines)):
        return gpus, {"num_cpus": 1, "num_gpus": 1}
    cores = [int(one["CPU"]) for one in machines if one.get("CPU", 0) >= 1]
    group = max(1, min(_CORES, min(cores) // 2))
    return sum(core // group for core in cores), {"num_cpus": group}


class _Actor:
    """An encoder on a worker.

    Args:
        stated: the options of the command. settings: those of its scorer, which this one must have, as text.
        cores: of this machine, for this actor.
    """

    def __init__(self, stated: dict[str, Any], settings: str, cores: int) -> None:
        torch.set_num_threads(cores)
        self._threads = cores
        self._scorer = scorer_of(argparse.Namespace(**stated))
        if different := settings_of(settings).difference(self._scorer.settings):
            raise OptionError(f"--encoder {stated['encoder']}: the machine that was asked has {different}")

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        paths = [path_of_text(path) for path in batch["path"]]
        found = Kept()
        run = score_files(paths, self._scorer, found, threads=self._threads)
        entries, errors = [], []
        for file, content in zip(run.files, batch["hash"], strict=True):
            known = file.hash == content and content in found
            entries.append(body_of(found[content], "") if known else b"")
            errors.append("" if known else file.error or _AGAIN)
        return {"hash": batch["hash"], "entry": np.array(entries, dtype=object), "error": _texts(errors)}


def _texts(values: Iterable[str]) -> np.ndarray:
    return np.array(list(values), dtype=object)
