"""What a node tells the page while the graph runs, and the images that the graph saves."""

from collections.abc import Callable
from typing import Any

from ..comfy.page import send_event, show_text
from .trace import Trace

TRACE_EVENT = "jepa_guidance.trace"  # web/js/rarity.js listens to it
METADATA_KEY = "jepa_guidance"


def trace_reporter(node_id: str | None) -> Callable[[Trace], None]:
    """A function that shows a growing trace on a node: its message as text, and for the chart the steps that are new."""
    shown: Trace | None = None
    sent = 0

    def report(trace: Trace) -> None:
        nonlocal shown, sent
        if node_id is None:
            return
        show_text(node_id, trace.message)
        first = sent if trace is shown else 0
        if trace is not shown or len(trace.steps) > first:
            send_event(TRACE_EVENT, {"node": node_id, "trace": trace.as_json(first)})
        shown, sent = trace, len(trace.steps)

    return report


def note_in_images(
    extra_pnginfo: dict | None, node_id: str | None, settings: dict[str, Any], trace: Trace
) -> None:
    """Have the host's save nodes write what guidance did into the images that this run of the graph saves.

    Args:
        extra_pnginfo: the host's, one for the whole run, which its save nodes write key by key; None where a prompt
            came without one.
        settings: those of the node's inputs that JSON can hold are kept.
    """
    if extra_pnginfo is not None:
        plain = {
            name: value for name, value in settings.items() if isinstance(value, str | int | float | bool)
        }
        noted = extra_pnginfo.setdefault(METADATA_KEY, {})
        noted[str(node_id)] = {"settings": plain, "trace": trace.as_json()}
