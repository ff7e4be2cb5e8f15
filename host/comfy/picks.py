"""Picks: a run waits while somebody chooses pictures on the page, and goes on with the first answer.

Pages learn of a pick from an event; those opened later ask for the picks that wait. An answer must name the pick's id, which
cannot be guessed. Requests come from where the host lets them come from, as for its own routes.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from .page import send_to_all
from .required import interrupt_check

PICK_EVENT = "jepa_guidance.pick"  # web/js/pick.js listens to it
ROUTE = "/jepa_guidance/picks"
POLL_SECONDS = 0.1  # between two looks at the host's interrupt
MOST_BYTES = 1 << 14  # of an answer

# How a pick ended; web/js/pick.js knows them too.
PICKED, LATE, STOPPED, CANCELLED = "picked", "late", "stopped", "cancelled"


class Ended(NamedTuple):
    """How a pick ended, and the pictures that are kept."""

    state: str
    kept: list[int]


class Pick:
    """A choice among pictures that a run waits for.

    Attributes:
        question: what pages show; its id names the pick in an answer.
        places: the pictures that may be chosen.
        kept: the answer, once there is one.
    """

    def __init__(self, question: dict[str, Any], places: Sequence[int], seconds: float) -> None:
        self.question = question
        self.places = frozenset(places)
        self.kept: list[int] = []
        self.answered = threading.Event()
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """The seconds until it is too late."""
        return self._end - time.monotonic()

    def as_json(self) -> dict[str, Any]:
        """What a page needs to show it."""
        return {**self.question, "state": "open", "left": self.left()}


def new_id() -> str:
    """An id that cannot be guessed."""
    return secrets.token_urlsafe(16)


# The picks that wait, by id. Whoever takes one out decides it: an answer, or the run itself.
_open: dict[str, Pick] = {}


def ask(question: dict[str, Any], places: Sequence[int], seconds: float, otherwise: Sequence[int]) -> Ended:
    """Show pictures on all pages, and wait for the first answer. The host's interrupt ends it.

    Args:
        question: for the pages, as JSON, with an id of its own.
        places: the pictures that may be chosen.
        seconds: how long to wait. otherwise: what is kept if nobody answers until then; [] to stop the run.
    """
    pick = Pick(question, places, seconds)
    ended = Ended(CANCELLED, [])
    _open[question["id"]] = pick
    try:
        send_to_all(PICK_EVENT, pick.as_json())
        while not pick.answered.wait(POLL_SECONDS) and pick.left() > 0:
            interrupt_check()
        if _open.pop(question["id"], None) is None:
            pick.answered.wait()  # an answer has taken it, and may still be writing
            ended = Ended(PICKED, pick.kept)
        else:
            ended = Ended(LATE if otherwise else STOPPED, list(otherwise))
    finally:
        _open.pop(question["id"], None)
        send_to_all(PICK_EVENT, {"id": question["id"], **ended._asdict()})
    return ended


def answer(content: bytes) -> tuple[int, str]:
    """Give a page's answer to the pick that it names.

    Args:
        content: JSON, {"id": the pick's, "kept": the chosen pictures in order}.

    Returns:
        The HTTP status, and a sentence.
    """
    try:
        found = json.loads(content)
        name, kept = found["id"], found["kept"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return 400, "An answer is JSON with id and kept."
    if not isinstance(name, str) or not isinstance(kept, list) or not kept:
        return 400, "id must be text, and kept a list with at least one place."
    if not all(type(place) is int for place in kept) or len(set(kept)) < len(kept):
        return 400, "kept must hold whole numbers, each once."
    pick = _open.get(name)
    if pick is not None and not pick.places.issuperset(kept):
        return 400, "kept names a picture that is not there."
    if pick is None or _open.pop(name, None) is None:
        return 404, "This pick is over, or never was."
    pick.kept = kept
    pick.answered.set()
    return 200, "The run goes on."


def register_routes() -> None:
    """Let pages ask the host's server for the picks that wait, and answer them."""
    from server import PromptServer, web

    routes = PromptServer.instance.routes

    @routes.get(ROUTE)
    async def give_open(_request: Any) -> Any:
        return web.json_response([pick.as_json() for pick in list(_open.values())])

    @routes.post(ROUTE)
    async def take_answer(request: Any) -> Any:
        # browsers send JSON to another site only with its leave
        small = request.content_length is not None and request.content_length <= MOST_BYTES
        if not small or request.content_type != "application/json":
            return web.json_response({"error": "An answer is a short JSON text."}, status=400)
        status, sentence = answer(await request.read())
        return web.json_response({"error" if status != 200 else "message": sentence}, status=status)
