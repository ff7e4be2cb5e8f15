"""The trace on the page while a node runs."""

from ..comfy.page import node_on_page, send_event, show_text
from .trace import Trace

TRACE_EVENT = "jepa_guidance.trace"  # web/js/rarity.js listens to it


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
            send_event(TRACE_EVENT, {"node": node_on_page(self._node_id), "trace": trace.as_json(first)})
