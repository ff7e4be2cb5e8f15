"""The trace on the page while a node runs, and in the metadata of saved images."""

from typing import Any

from ..comfy.page import send_event, show_text
from .trace import Trace

TRACE_EVENT = "jepa_guidance.trace"  # web/js/rarity.js listens to it
METADATA_KEY = "jepa_guidance"


class TraceReporter:
    """Shows a growing trace on a node: its message as text, and the new steps for the chart.

    Args:
        node_id: the node; None shows nothing.

    Attributes:
        trace: the last trace reported.
    """

    def __init__(self, node_id: str | None) -> None:
        self.trace = Trace()
        self._node_id = node_id
        self._sent = 0

    def __call__(self, trace: Trace) -> None:
        is_new = trace is not self.trace
        first = 0 if is_new else self._sent
        self.trace, self._sent = trace, len(trace.steps)
        if self._node_id is None:
            return
        show_text(self._node_id, trace.message())
        # places come after the last step
        if is_new or len(trace.steps) > first or trace.places:
            send_event(TRACE_EVENT, {"node": self._node_id, "trace": trace.as_json(first)})


def note_in_images(
    extra_pnginfo: dict | None, node_id: str | None, settings: dict[str, Any], trace: dict
) -> None:
    """Have the host's save nodes write the settings and the trace into the images of this queue item.

    Several runs of a node in one queue item, as for a list of latents, are numbered in their order.

    Args:
        extra_pnginfo: the host's metadata for the queue item, which its save nodes write key by key; None if the prompt
            has none.
        settings: the node's inputs; only strings, numbers and booleans are kept.
        trace: what the node did, as JSON.
    """
    if extra_pnginfo is not None:
        plain = {
            name: value for name, value in settings.items() if isinstance(value, str | int | float | bool)
        }
        noted = extra_pnginfo.setdefault(METADATA_KEY, {})
        _add(noted, str(node_id), {"settings": plain, "trace": trace})


def _add(noted: dict[str, Any], name: str, run: dict[str, Any]) -> None:
    """Add a run of a node. The host runs a node once for each entry of a list, and saves the pictures of all runs after."""
    runs = [key for key in noted if key.startswith(f"{name}, run ")]
    if name not in noted and not runs:
        noted[name] = run
        return
    if name in noted:
        noted[f"{name}, run 1"] = noted.pop(name)
    noted[f"{name}, run {max(len(runs), 1) + 1}"] = run
