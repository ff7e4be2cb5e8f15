"""A search on the page while it runs: every candidate as a small picture with its score."""

from io import BytesIO
from typing import Any

from PIL import Image
from torch import Tensor

from ..comfy.page import node_on_page, send_event, show_text
from .record import Candidate, SearchRecord

SEARCH_EVENT = "jepa_guidance.search"  # web/js/search.js listens to it
SIDE = 96  # pixels of a small picture
MOST_SHOWN = 64  # candidates with a picture


class SearchReporter:
    """Shows one search on a node while it runs: its message as text, and its candidates as pictures.

    Args:
        node_id: the node; None shows nothing.
    """

    def __init__(self, node_id: str | None) -> None:
        self._node_id = node_id
        # of each candidate: the step of its picture, and the picture
        self._pictures: dict[int, tuple[int | None, str]] = {}

    def __call__(self, record: SearchRecord) -> None:
        if self._node_id is None:
            return
        show_text(self._node_id, record.message())
        search = record.as_json()
        for one in _shown(record):
            if self._is_new(one):
                search["candidates"][one.index]["picture"] = self._picture(one)
        send_event(SEARCH_EVENT, {"node": node_on_page(self._node_id), "search": search})

    def final(self, record: SearchRecord) -> dict[str, Any]:
        """The record with all pictures, for a page that is opened later."""
        search = record.as_json()
        for one in _shown(record):
            search["candidates"][one.index]["picture"] = self._picture(one)
        return search

    def _is_new(self, one: Candidate) -> bool:
        return self._pictures.get(one.index, (None, ""))[0] != one.step

    def _picture(self, one: Candidate) -> str:
        if self._is_new(one):
            assert one.picture is not None
            self._pictures[one.index] = (one.step, _as_address(one.picture))
        return self._pictures[one.index][1]


def _shown(record: SearchRecord) -> list[Candidate]:
    """The candidates that have been seen and get a picture on the page: the kept ones first."""
    rest = [one for one in record.candidates if one not in record.kept]
    return [one for one in [*record.kept, *rest][:MOST_SHOWN] if one.picture is not None]


def _as_address(picture: Tensor) -> str:
    """A picture (H, W, 3) in [0, 1] as a small JPEG in a data address."""
    image = Image.fromarray(picture.nan_to_num(0).clamp(0, 1).mul(255).round().byte().numpy())
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    file = BytesIO()
    image.save(file, "JPEG", quality=80)
    return "data:image/jpeg," + "".join(f"%{byte:02X}" for byte in file.getvalue())
