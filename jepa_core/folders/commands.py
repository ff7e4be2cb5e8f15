"""The commands of python -m jepa_core. Each adds its parser, and the function that runs it as the default of `run`."""

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from ..reference import Reference, save_reference
from .cluster import connected, score_on_cluster
from .comparison import Comparison
from .curating import add_report, add_select
from .journal import Journal, journal_of
from .listing import find_pictures, text_of_path
from .options import (
    OptionError,
    add_scoring,
    check_output,
    need_packages,
    reference_named,
    refused,
    scorer_of,
    unwritable,
    whole_number,
)
from .run import Run, rows_of, score_files
from .scorer import Found, Scorer, part_from
from .table import (
    read_settings,
    read_table,
    reference_of,
    rows_of_reference,
    settings_of_reference,
    write_table,
)

_SHOWN = 10  # files that could not be read


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 2 for what cannot be done, 130 if it was stopped from the keyboard."""
    parser = argparse.ArgumentParser(
        prog="python -m jepa_core", description="Scores, embeddings and references of any number of pictures."
    )
    parsers: Any = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in COMMANDS:
        add(parsers)
    options = parser.parse_args(arguments)
    # what is wrong with a file is in the table
    warnings.filterwarnings("ignore", module=r"PIL\.")
    disable_progress_bar()  # of loading weights
    try:
        options.run(options)
    except OptionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        return 130
    return 0


# --- score ----------------------------------------------------------------------------------------------------------


def add_score(parsers: Any) -> None:
    """Add `score`."""
    parser = parsers.add_parser(
        "score",
        help="score pictures in folders into a table",
        description="Score pictures into a parquet table. Run again, it goes on where it was: no content is scored twice. "
        "What was scored is kept in OUT.journal.",
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a folder, with all below it, or a picture")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.parquet")
    parser.add_argument("--reference", type=Path, metavar="FILE.safetensors", help="adds novelty beside it")
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="score on all machines of a Ray cluster: auto for the one that this machine belongs to, or local to start one "
        "here; all must reach pictures and encoder under the same paths",
    )
    add_scoring(parser, required=True)
    parser.set_defaults(run=score)


def score(options: argparse.Namespace) -> None:
    """Score pictures into a table. Raises OptionError."""
    need_packages()
    check_output(options.out, ".parquet")
    paths = _pictures(options.paths)
    reference = reference_named("--reference", options.reference) if options.reference else None
    scorer = scorer_of(options)
    _check_same(options.out, scorer)
    comparison = None
    if reference:
        try:
            comparison = Comparison(reference, scorer.settings)
        except ValueError as error:
            raise refused("--reference", options.reference, error) from error
    with (
        connected(options.ray) if options.ray else nullcontext(),
        _journal(options.out, scorer) as journal,
    ):
        run = _scored(paths, scorer, journal, options)
        rows = rows_of(run, journal, comparison)
        try:
            write_table(options.out, scorer.settings, scorer.encoder.embed_dim, rows)
        except OSError as error:
            raise unwritable(options.out, error) from error


def _pictures(paths: Sequence[str]) -> list[str]:
    try:
        found = find_pictures(paths)
    except ValueError as error:
        raise OptionError(f"PATH {error}") from error
    if not found:
        raise OptionError(
            f"PATH {text_of_path(' '.join(paths))}: no pictures there; name folders that hold some"
        )
    return found


def _check_same(out: Path, scorer: Scorer) -> None:
    """Raise OptionError if a table of other settings would be replaced."""
    if not out.exists():
        return
    try:
        before = read_settings(out)
    except (ValueError, OSError) as error:
        raise refused("--out", out, f"{error}; name another file, or remove this one") from error
    if different := before.difference(scorer.settings):
        raise refused("--out", out, f"it was made with {different}; name another file, or remove this one")


def _journal(out: Path, scorer: Scorer) -> Journal:
    try:
        return Journal(journal_of(out), scorer.settings)
    except ValueError as error:
        raise refused("--out", out, error) from error
    except OSError as error:
        raise unwritable(out, error) from error


def _scored(paths: Sequence[str], scorer: Scorer, journal: Journal, options: argparse.Namespace) -> Run:
    """Score files, show progress, and say what happened."""
    from tqdm import tqdm

    try:
        with tqdm(total=len(paths), unit=" pictures", smoothing=0.1, disable=None) as bar:
            work = partial(score_files, batch=options.batch, threads=options.threads)
            if options.ray:
                work = partial(score_on_cluster, options=options)
            run = work(paths, scorer, journal, on_file=lambda: bar.update(1) and None)
    except torch.OutOfMemoryError as error:
        raise refused(
            "--batch", options.batch or scorer.batch, "the device has too little memory; lower it"
        ) from error
    except OSError as error:
        raise unwritable(journal_of(options.out), error) from error
    broken = run.errors(journal)
    for path, why in broken[:_SHOWN]:
        print(f"not scored: {text_of_path(path)}: {why}", file=sys.stderr)
    if len(broken) > _SHOWN:
        print(f"not scored: {len(broken) - _SHOWN} more, see the column error", file=sys.stderr)
    rate = f", {run.scored / run.seconds:.2f} pictures/s" if run.scored else ""
    waited = "" if options.ray else f", of which the encoder waited {run.waiting:.1f} s for pictures"
    print(
        f"{len(paths)} pictures: {run.scored} scored now, {len(broken)} not readable, the others known before or alike; "
        f"{run.seconds:.1f} s{rate}{waited}"
    )
    return run


# --- reference ------------------------------------------------------------------------------------------------------


def add_reference(parsers: Any) -> None:
    """Add `reference`."""
    parser = parsers.add_parser(
        "reference",
        help="make a reference from a table or from pictures, or a table from a reference",
        description="Make a reference (.safetensors) from a table (.parquet), or from folders of pictures with the options "
        "of score; or a table from a reference. ComfyUI finds references in models/jepa_references.",
    )
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="a table, a reference, or folders of pictures"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FILE")
    parser.add_argument(
        "--count", type=whole_number, metavar="N", help="at most N of the pictures, drawn at random"
    )
    add_scoring(parser, required=False)
    parser.set_defaults(run=reference, ray=None)


def reference(options: argparse.Namespace) -> None:
    """Make a reference, or a table from one. Raises OptionError."""
    need_packages()
    first = Path(options.paths[0])
    if len(options.paths) == 1 and first.suffix == ".safetensors":
        check_output(options.out, ".parquet")
        _table_from(first, options.out)
        return
    check_output(options.out, ".safetensors")
    if len(options.paths) == 1 and first.suffix == ".parquet":
        try:
            made = reference_of(read_table(first))
        except (ValueError, OSError) as error:
            raise refused("PATH", first, error) from error
    else:
        made = _reference_from_pictures(options)
    made = made.thinned(options.count) if options.count else made
    try:
        save_reference(made, options.out)
    except OSError as error:
        raise unwritable(options.out, error) from error
    print(f"{options.out}: {len(made)} pictures, {made.label}, {made.how['mode']}")


def _reference_from_pictures(options: argparse.Namespace) -> Reference:
    if not options.encoder:
        raise OptionError("--encoder is needed to make a reference from pictures")
    paths = _pictures(options.paths)
    scorer = scorer_of(options)
    with (
        connected(options.ray) if options.ray else nullcontext(),
        _journal(options.out, scorer) as journal,
    ):
        run = _scored(paths, scorer, journal, options)
        rows = rows_of(run, journal)
        found = [
            Found(row.score, torch.tensor(row.embedding), torch.tensor(row.smoothed))
            for row in rows
            if row.embedding is not None
        ]
    if not found:
        raise OptionError(f"PATH {text_of_path(' '.join(options.paths))}: none of the pictures can be read")
    return Reference((part_from(found, scorer.settings),), scorer.settings.how)


def _table_from(file: Path, out: Path) -> None:
    made = reference_named("PATH", file)
    try:
        settings = settings_of_reference(made)
    except ValueError as error:
        raise refused("PATH", file, error) from error
    length = made.parts[0].embeddings.shape[1]
    try:
        write_table(out, settings, length, rows_of_reference(made, time.time_ns() // 1000))
    except OSError as error:
        raise unwritable(out, error) from error
    print(f"{out}: {len(made)} pictures, {made.label}, {made.how['mode']}")


# Every command: a function that adds it to the parsers.
COMMANDS = (add_score, add_reference, add_report, add_select)
