"""Images that somebody keeps by looking at them, sorted by rarity; without a page, the first of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..comfy.page import node_on_page, page_is_open
from ..comfy.picks import PICKED, STOPPED, Ended, ask, new_id
from .choice import Choice
from .rarity import Rarity

MOST_SHOWN = 256  # pictures on a page
UNASKED = "unasked"  # how a pick ended that no page was asked for; web/js/pick.js knows it too

# of each node: how often its images were kept without anybody choosing them
_unanswered: Counter[str] = Counter()


@dataclass(frozen=True)
class Viewing:
    """What is shown to whom, and what happens if nobody answers.

    Attributes:
        keep: RAREST or TYPICAL, the first of the order. by: SCORE or NOVELTY.
        node: the node's id; None asks nobody. workflow: the id of the page's workflow, if known.
        count: how many of the first are kept if nobody chooses.
        seconds: how long to wait. stops: whether the run stops then.
    """

    keep: str
    by: str
    node: str | None
    workflow: str | None
    count: int
    seconds: int
    stops: bool

    def order(self, rarity: Rarity) -> list[int]:
        """Indices of the images that are shown, in this order. Raises ValueError if there are none."""
        return Choice(self.keep, self.by, MOST_SHOWN, 0.0, [], [], -math.inf).kept(rarity)

    def question(
        self,
        rarity: Rarity,
        order: Sequence[int],
        pictures: Sequence[dict],
        seeds: Sequence[int],
        places: Sequence[int],
    ) -> dict[str, Any]:
        """What the page shows, as JSON.

        Args:
            pictures: of the shown images, their small pictures in the host's temp folder.
            seeds: of all images, or none.
            places: of all images in the batches that one seed drew, or none.
        """
        images = [
            {
                "index": index,
                "value": rarity.values[index],
                "rarer": rarity.rarer_than[index] if rarity.rarer_than else None,
                "seed": str(seeds[index]) if seeds else None,  # larger than the page's numbers
                "place": places[index] if places else None,
                "picture": dict(picture),
            }
            for index, picture in zip(order, pictures, strict=True)
        ]
        own = ("keep", "by", "workflow", "seconds", "stops")
        node = None if self.node is None else node_on_page(self.node)
        about = {"id": new_id(), "node": node, **{name: getattr(self, name) for name in own}}
        return about | {"count": min(self.count, len(order)), "total": len(rarity.values), "images": images}

    def chosen(self, question: dict[str, Any]) -> Ended:
        """The images that are kept, once somebody has chosen them. Raises TimeoutError if nobody has and the run stops."""
        order = [image["index"] for image in question["images"]]
        first = order[: self.count]
        if self.node is None or not page_is_open():
            ended = Ended(UNASKED, first)
        else:
            ended = ask(question, order, self.seconds, [] if self.stops else first)
        if ended.state == STOPPED:
            raise TimeoutError(
                f"Nobody picked an image within {self.seconds} s, so the run stopped. Run it again and pick, raise timeout, "
                "or set on_timeout to keep the first."
            )
        if ended.state != PICKED and self.node is not None:
            _unanswered[self.node] += 1
        return ended


def unanswered(node: str | None) -> int:
    """How often images of a node were kept without anybody choosing them: after that, the same run asks again."""
    return _unanswered[node] if node is not None else 0


def workflow_of(extra: Any) -> str | None:
    """The id of the workflow that a page has sent along with a prompt; None without one."""
    workflow = extra.get("workflow") if isinstance(extra, dict) else None
    found = workflow.get("id") if isinstance(workflow, dict) else None
    return found if isinstance(found, str) else None
