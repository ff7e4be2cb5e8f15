"""JEPAPlotTrace: a chart of what guidance did."""

from comfy_api.latest import io, ui

from ..host.drawing.pictures import to_image
from ..host.drawing.trace_chart import draw_trace
from .input_checks import check_values, inputs_of
from .search_words import search_words
from .types import JEPATrace


class JEPAPlotTrace(io.ComfyNode):
    """Draws a trace -> IMAGE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JEPAPlotTrace",
            display_name="JEPA Plot Trace",
            category="JEPA",
            description="Draws the JEPA score, the novelty, or both at each step of a JEPA Guided KSampler run. A lower "
            "score and a higher novelty are rarer; grey steps were not guided. A judge gets its own panel.",
            **search_words("JEPAPlotTrace", "chart, graph, plot, curve, rarity"),
            inputs=[JEPATrace.Input("trace", tooltip="From JEPA Guided KSampler, after it has run.")],
            outputs=[io.Image.Output(display_name="chart", tooltip="The chart, 1024 pixels wide.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, trace) -> io.NodeOutput:
        check_values(inputs_of(JEPAPlotTrace), {"trace": trace})
        chart = to_image(draw_trace(trace))
        return io.NodeOutput(chart, ui=ui.PreviewImage(chart, cls=cls))
