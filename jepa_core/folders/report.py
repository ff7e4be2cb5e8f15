"""A table as one page that needs nothing else: distribution, rarest and most typical, duplicates, and all rows."""

import binascii
import datetime
import hashlib
import html
import io
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..transparency import over_white
from .collection import Collection, folder_and_name
from .listing import path_of_text
from .reading import opened_picture, pixels_of

SHOWN = 24  # of the rarest, and of the most typical
THUMBNAILS = 600  # in a report; some 5 kB each
_GROUPS, _MEMBERS = 40, 6  # whose thumbnails are taken before those of other rows
_SIDE = 144  # pixels of a thumbnail
_SMOOTH = ("RGB", "RGBA", "L", "LA", "CMYK", "YCbCr")  # modes in which a picture can be resized well
_PAGE = Path(__file__).with_name("page")


def write_report(
    out: Path,
    title: str,
    collection: Collection,
    groups: Sequence[Sequence[int]],
    distance: float,
    thumbnails: int = THUMBNAILS,
    on_picture: Callable[[], object] = lambda: None,
) -> None:
    """Write a report as HTML. It appears whole or not at all, and replaces an older one.

    Args:
        title: of the page.
        groups: duplicates, the best first, found with `distance`.
        thumbnails: at most so many pictures are shown in small.
        on_picture: called after each picture that was read.

    Raises:
        OSError: it cannot be written.
    """
    orders = {criterion: collection.rarest_first(criterion) for criterion in collection.criteria}
    wanted = list(islice(worth_showing(collection, orders, groups), thumbnails))
    small: dict[int, str] = {}
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        found = pool.map(lambda place: thumbnail(collection.paths[place]), wanted)
        for place, one in zip(wanted, found, strict=True):
            on_picture()
            if one:
                small[place] = one
    data = {
        "title": title,
        "about": _about(collection),
        "distance": distance,
        "groups": groups,
        "thumbnails": small,
        "missing": sorted(set(wanted) - set(small)),
        "rarest": {name: order[:SHOWN] for name, order in orders.items()},
        # not those that are among the rarest already
        "typical": {name: order[SHOWN:][: -SHOWN - 1 : -1] for name, order in orders.items()},
        **_columns(collection),
    }
    _save(out, page(title, data))


def worth_showing(
    collection: Collection, orders: dict[str, list[int]], groups: Sequence[Sequence[int]]
) -> Iterable[int]:
    """The pictures that could be read, those first whose thumbnails are seen first; each once."""
    first = [place for order in orders.values() for place in (*order[:SHOWN], *order[-SHOWN:])]
    alike = [place for group in groups[:_GROUPS] for place in group[:_MEMBERS]]
    readable = [place for place, error in enumerate(collection.errors) if error is None]
    others = next(iter(orders.values()), readable)
    return dict.fromkeys([*first, *alike, *others])


def thumbnail(path: str) -> str | None:
    """A picture in small as JPEG in base64; None if it is not there or cannot be read any more."""
    try:
        with opened_picture(path_of_text(path)) as opened:
            if opened.mode in _SMOOTH:
                # first, so that the memory of a large picture is never taken
                opened.thumbnail((2 * _SIDE, 2 * _SIDE))
            pixels = over_white(pixels_of(opened)[None])[0]
    except Exception:  # as many kinds as there are damaged files, which have been named when they were scored
        return None
    picture = Image.fromarray((pixels * 255).round().byte().numpy())
    picture.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    return _base64(file.getvalue())


def page(title: str, data: Any) -> str:
    """The page with its data. It can load pictures of this machine, and nothing else."""
    style, script, template = (
        (_PAGE / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js", "html")
    )
    policy = (
        f"default-src 'none'; img-src data: file:; style-src 'sha256-{_digest(style)}'; "
        f"script-src 'sha256-{_digest(script)}'; base-uri 'none'; form-action 'none'"
    )
    # "<" could end the element; what is not ASCII could be half a character
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    filled = {
        "policy": policy,
        "title": html.escape(title),
        "style": style,
        "data": text,
        "script": script,
    }
    before, *parts = template.split("{")
    pieces = [before]
    for part in parts:
        name, after = part.split("}", 1)
        pieces += [filled[name], after]
    return "".join(pieces)


def _about(collection: Collection) -> str:
    settings = collection.settings
    day = datetime.date.today().isoformat()
    return f"Seen by {settings.encoder} at {settings.image_size} px, {settings.mode}. Report of {day}."


def _columns(collection: Collection) -> dict[str, Any]:
    """The columns as the page reads them."""
    split = [folder_and_name(path) for path in collection.paths]
    folders = sorted({folder for folder, _ in split})
    number = {folder: place for place, folder in enumerate(folders)}
    numbers = collection.numbers
    columns: dict[str, Any] = {
        "criteria": collection.criteria,
        "folders": folders,
        "folder": [number[folder] for folder, _ in split],
        "names": [name for _, name in split],
        "errors": {place: error for place, error in enumerate(collection.errors) if error is not None},
        **{name: numbers[name].astype(np.int64).tolist() for name in ("width", "height", "bytes")},
    }
    for name in (*collection.criteria, *(["more_novel_than"] if "novelty" in collection.criteria else [])):
        columns[name] = [float(f"{value:.7g}") if math.isfinite(value) else None for value in numbers[name]]
    return columns


def _digest(text: str) -> str:
    return _base64(hashlib.sha256(text.encode()).digest())


def _base64(content: bytes) -> str:
    return binascii.b2a_base64(content, newline=False).decode()


def _save(out: Path, text: str) -> None:
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".saving-") as folder:
        made = Path(folder) / "report"
        made.write_text(text, encoding="utf-8", newline="\n")
        os.replace(made, out)
