"""What is known of the pictures of a folder, the rarest first, as CSV and JSON; and the rarest as images."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ...jepa_core import Reference
from ...jepa_core.folders.reading import UNREADABLE, read_picture
from ...jepa_core.transparency import over_white
from ..encoders.host_encoder import AnyEncoder
from ..options import NOVELTY
from .folder_scores import FolderScores
from .novelty import more_novel_than, novelties_of, own_novelties
from .reference import parts_of, reference_scores
from .spreadsheet import csv_text


class Line(NamedTuple):
    """A file, and what is known of it. The columns are those of the command line's tables; what people look for comes first.

    Attributes:
        file: its path inside the host's folder, with / between folders, as listing.text_of_path writes it.
        score: lower is rarer. novelty, more_novel_than: higher is rarer, see novelty.more_novel_than. None if not known.
        width, height: in pixels, as the picture is shown; 0 if unknown. bytes: its length.
        error: why it could not be read or scored, or None.
        hash: SHA-256 of its bytes in hexadecimal, "" if unknown.
    """

    file: str
    score: float | None
    novelty: float | None
    more_novel_than: float | None
    width: int
    height: int
    bytes: int
    error: str | None
    hash: str


def lines_of(
    found: FolderScores, names: Sequence[str], encoder: AnyEncoder, by: str, reference: Reference | None
) -> list[Line]:
    """What is known of each file, in their order.

    Args:
        found: of a picture at least. names: of the files, as in Line.
        by: SCORE or NOVELTY.
        reference: one that can be compared with, for novelty. Without, novelty is that among the pictures, and is told only
            if `by` is NOVELTY.

    Raises:
        ValueError: by novelty, of one picture without a reference.
    """
    assert found.reference is not None
    scores: Sequence[float | None] = reference_scores(found.reference, encoder)
    scores = scores or [None] * len(found.good)
    novelties, shares = _beside(found.reference, encoder, by, reference)
    known = dict(zip(found.good, zip(scores, novelties, shares, strict=True), strict=True))
    lines = []
    for place, (name, row) in enumerate(zip(names, found.rows, strict=True)):
        rarity = known.get(place, (None, None, None))
        lines.append(Line(name, *rarity, row.width, row.height, row.bytes, found.errors.get(place), row.hash))
    return lines


def _beside(
    made: Reference, encoder: AnyEncoder, by: str, reference: Reference | None
) -> tuple[Sequence[float | None], Sequence[float | None]]:
    """Novelties of a folder's pictures, and the percentages of the reference than which they are more novel."""
    unknown = [None] * len(made)
    if reference is not None:
        embeddings = [part.embeddings for part, _ in parts_of(made, encoder)]
        values = novelties_of(embeddings, encoder, reference)
        return values, more_novel_than(values, reference, encoder) or unknown
    if by != NOVELTY:
        return unknown, unknown
    values = own_novelties(made, encoder)
    if not values:
        raise ValueError(
            "by novelty needs something to compare a single picture with: link a reference, or set by to score"
        )
    return values, more_novel_than(values, made, encoder) or unknown


def rarest_first(lines: Sequence[Line], by: str) -> list[int]:
    """The places of the pictures that were scored, the rarest first; those alike stay in their order."""
    good = [place for place, line in enumerate(lines) if line.error is None]
    return sorted(good, key=lambda place: rarity_value(lines[place], by), reverse=by == NOVELTY)


def rarity_value(line: Line, by: str) -> float:
    """The score or novelty of a picture, whichever `by` names."""
    value = line.novelty if by == NOVELTY else line.score
    assert value is not None
    return value


def rarest_pictures(
    order: Sequence[int], lines: Sequence[Line], files: Sequence[str], count: int
) -> tuple[list[int], list[Tensor]]:
    """At most `count` pictures as they were scored: (H, W, 3) in [0, 1], on white; and their places.

    Of pictures with the same bytes only the first is given.

    Args:
        order: places, the rarest first.

    Raises:
        ValueError: none can be read any more.
    """
    places: dict[str, int] = {}
    pictures: list[Tensor] = []
    why = ""
    for place in order:
        if len(pictures) == count:
            break
        if lines[place].hash in places:
            continue
        try:
            picture = read_picture(Path(files[place]))
        except UNREADABLE as error:  # removed or changed since it was scored, or memory is short now
            why = str(error) or type(error).__name__
            continue
        places[lines[place].hash] = place
        pictures.append(over_white(picture))
    if not pictures:
        raise ValueError(f"none of the pictures that were scored can be read any more ({why}); run again")
    return list(places.values()), pictures


def as_csv(lines: Iterable[Line]) -> str:
    """Lines as CSV with a header."""
    return csv_text(Line._fields, lines)


def as_json(lines: Iterable[Line], about: Mapping[str, Any]) -> str:
    """Lines as JSON, under "pictures", after what they are about."""
    return json.dumps({**about, "pictures": [line._asdict() for line in lines]}, ensure_ascii=False, indent=1)
