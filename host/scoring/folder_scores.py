"""The pictures of a folder of the host, each scored once: what is found is kept in files from run to run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from ...jepa_core import Reference
from ...jepa_core.folders.journal import Journal, JournalError
from ...jepa_core.folders.run import Run, rows_of, score_files
from ...jepa_core.folders.scorer import Found, Scorer, Settings, part_from
from ...jepa_core.folders.table import Row
from ...jepa_core.reference import NO_SCORE, scoring_of
from ...jepa_core.writing import writing_into
from ..comfy.required import folder_paths, interrupt_check
from ..encoders.host_encoder import AnyEncoder, HostEncoder, use_encoder
from .reference import key_of
from .scores import check_lengths

# Of a layer's activations, on an accelerator; pictures are scored together as far as they fit.
_LAYER_BYTES = 1 << 27


class FolderScores(NamedTuple):
    """What encoders make of files.

    Attributes:
        rows: of all files, in their order; the scores and embeddings are those of the first encoder.
        errors: by the place of a file, why it could not be read or scored.
        reference: of the others, in their order; None if there is none.
        new: how many contents were scored now.
        not_kept: why the next run will score them again, or "".
    """

    rows: list[Row]
    errors: dict[int, str]
    reference: Reference | None
    new: int
    not_kept: str

    @property
    def good(self) -> list[int]:
        """The places of the files that were scored."""
        return [place for place in range(len(self.rows)) if place not in self.errors]


def score_folder(
    files: Sequence[str],
    encoder: AnyEncoder,
    how: Mapping[str, str],
    *,
    on_file: Callable[[], None] = lambda: None,
) -> FolderScores:
    """Score picture files under every encoder of a set, as make_reference does. What earlier runs found is not scored again.

    Whatever was scored before an interrupt is kept.

    Args:
        how: see Reference; its mode says which scores are made.
        on_file: called after each file under each encoder.

    Raises:
        ValueError: the mode does not fit an encoder.
        jepa_core.writing.UnwritableError: the disk became full.
    """
    if how["mode"] != NO_SCORE:
        check_lengths(encoder, **scoring_of(how["mode"]))
    every: dict[Settings, list[Row]] = {}
    new, words = 0, []
    # one encoder after the other: they need not fit on the device together
    for member in encoder.members:
        settings = Settings(member.encoder.name, *key_of(member.encoder), **how)
        if settings.key in [other.key for other in every]:
            continue
        with kept_scores(settings) as (journal, not_kept):
            run = _run(files, member.encoder, settings, journal, on_file)
            every[settings] = list(rows_of(run, journal))
        new = max(new, run.scored)
        words.append(not_kept)
    each = list(zip(*every.values(), strict=True))
    errors = {place: error for place, rows in enumerate(each) if (error := _error(rows))}
    reference = _reference(every, [place for place in range(len(each)) if place not in errors], how)
    return FolderScores(next(iter(every.values())), errors, reference, new, next(filter(None, words), ""))


def _run(
    files: Sequence[str],
    encoder: HostEncoder,
    settings: Settings,
    journal: Journal,
    on_file: Callable[[], None],
) -> Run:
    def after_file() -> None:
        interrupt_check()  # files that are known take no pass of the encoder
        on_file()

    scorer = Scorer(use_encoder(encoder), settings)
    batch = max(1, min(scorer.batch, _LAYER_BYTES // scorer.encoder.layer_bytes))
    with writing_into(journal.file.parent, "the scores"):
        return score_files(files, scorer, journal, batch=batch, on_file=after_file, on_pass=interrupt_check)


def _error(rows: Sequence[Row]) -> str | None:
    """Why a file could not be scored, from its rows under each encoder."""
    if len({row.hash for row in rows}) > 1:
        return "it changed while it was read; run again"
    return next((row.error for row in rows if row.error), None)


def _reference(
    every: Mapping[Settings, Sequence[Row]], good: Sequence[int], how: Mapping[str, str]
) -> Reference | None:
    if not good:
        return None
    parts = (part_from([_found(rows[place]) for place in good], settings) for settings, rows in every.items())
    return Reference(tuple(parts), dict(how))


def _found(row: Row) -> Found:
    return Found(row.score, torch.tensor(row.embedding), torch.tensor(row.smoothed))


def scores_file(settings: Settings) -> Path:
    """Where scores with these settings are kept: in the host's user folder, where its web server gives out nothing."""
    folder = Path(folder_paths.get_system_user_directory("jepa_guidance"))
    return folder / f"scores_{settings.key}.journal"


@contextmanager
def kept_scores(settings: Settings) -> Iterator[tuple[Journal, str]]:
    """What is known with these settings, and "". Where it cannot be kept, an empty journal for now, and why."""
    file = scores_file(settings)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        journal = Journal(file, settings)
    except (OSError, JournalError) as error:
        why = f"{file.parent} cannot be written ({error.strerror})" if isinstance(error, OSError) else error
        with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / file.name, settings) as journal:
            yield journal, f"scores are not kept for the next run: {why}"
        return
    with journal:
        yield journal, ""
