"""JEPASelfGuidedMinority: the model's own estimates say what is rare."""

from typing import Any

from comfy_api.latest import io

from ..host.comfy.page import show_text
from ..host.gradient.self_guidance import PUBLISHED_LEVEL
from ..host.guidance.report import TraceReporter
from ..host.guidance.self_guided import apply_self_guidance, self_guided_schedule
from .guidance_inputs import MAX_STRENGTH, guides_nothing, off_text
from .input_checks import check_values, inputs_of
from .sampling_inputs import share_input
from .search_words import search_words

LEVELS = (0.05, 0.99)


class JEPASelfGuidedMinority(io.ComfyNode):
    """Self-guided minority sampling (arXiv 2407.11555): MODEL -> MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JEPASelfGuidedMinority",
            display_name="Self-Guided Minority Sampling",
            category="JEPA/compare",
            description="Guides any sampler toward images that the model itself seldom draws: those that come back "
            "changed when noised and denoised again. Needs no encoder and no VAE (Um, Ye, ECCV 2024).",
            **search_words("JEPASelfGuidedMinority", "minority, rare, sgms, low density, diversity"),
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model to guide. It must have a gradient."),
                io.Float.Input(
                    "strength",
                    default=0.3,
                    min=0.0,
                    max=MAX_STRENGTH,
                    step=0.05,
                    tooltip="How far to guide. 0.3 every 2 of 20 steps shifts as far in all as the paper's settings for "
                    "250: 0.4 every 5 (faces) and 0.2 every 2 (ImageNet). 2 loses the prompt. 0: exactly the stock sampler.",
                ),
                io.Int.Input(
                    "interval",
                    default=2,
                    min=1,
                    max=100,
                    tooltip="Guide every N-th step. A guided step takes three to four times as long as another. A larger N "
                    "shifts less in all; raise strength with it.",
                ),
                io.Float.Input(
                    "level",
                    default=PUBLISHED_LEVEL,
                    min=LEVELS[0],
                    max=LEVELS[1],
                    step=0.05,
                    tooltip="How far each estimate is noised again, as a share of the diffusion time. 0.8 is the paper's: "
                    "little of the estimate survives.",
                ),
                share_input(
                    "start_percent", 0.0, "The fraction of this sampler's steps before guidance begins."
                ),
                share_input("end_percent", 1.0, "The fraction of the steps after which guidance stops."),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The guided model, for any sampler.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, **settings: Any) -> io.NodeOutput:
        check_values(inputs_of(JEPASelfGuidedMinority), {"model": model} | settings)
        if guides_nothing(settings):
            show_text(cls.hidden.unique_id, off_text(model, "the model is unchanged"))
            return io.NodeOutput(model)
        schedule = self_guided_schedule(
            settings["strength"], settings["interval"], settings["start_percent"], settings["end_percent"]
        )
        report = TraceReporter(cls.hidden.unique_id)
        return io.NodeOutput(apply_self_guidance(model, schedule, settings["level"], report=report))
