"""JEPAPlotTrace: what guidance did, as a picture."""

from comfy_api.latest import io, ui

from ..host.drawing.pictures import to_image
from ..host.drawing.trace_chart import draw_trace
from .checks import check_values
from .types import JEPATrace


class JEPAPlotTrace(io.ComfyNode):
    """A trace -> IMAGE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JEPAPlotTrace",
            display_name="JEPA Plot Trace",
            category="JEPA",
            description="Draws how the JEPA score went from step to step while JEPA Guided KSampler guided. Down is "
            "rarer; grey steps were not guided. A judge gets a panel of its own.",
            inputs=[JEPATrace.Input("trace", tooltip="From JEPA Guided KSampler, after it has run.")],
            outputs=[io.Image.Output(display_name="chart", tooltip="The chart, 1024 pixels wide.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, trace) -> io.NodeOutput:
        check_values(cls.define_schema().inputs, {"trace": trace})
        chart = to_image(draw_trace(trace))
        return io.NodeOutput(chart, ui=ui.PreviewImage(chart, cls=cls))
