"""JEPABoostAndSkip: a start with too strong noise, past the first steps."""

from typing import Any

from comfy_api.latest import io

from ..host.comfy.page import show_text
from ..host.guidance.brought import replaced
from ..host.options import BOOST
from ..host.variety.patch import apply_boost
from .input_checks import check_values, inputs_of
from .search_words import search_words

LEAST_GAMMA, MOST_GAMMA = 1.0, 6.0


class JEPABoostAndSkip(io.ComfyNode):
    """Boost-and-Skip (arXiv 2502.06516): MODEL -> MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JEPABoostAndSkip",
            display_name="Boost-and-Skip",
            category="JEPA/compare",
            description="Starts each run with noise that is too strong, past its first steps, so that rarer images come "
            "out. Needs no gradient and no encoder, and costs nothing (Um, Kim, Ye, ICML 2025).",
            **search_words("JEPABoostAndSkip", "minority, rare, diversity, noise, bns"),
            inputs=[
                io.Model.Input(
                    "model", tooltip="The diffusion model. JEPA Guidance may come before or after."
                ),
                io.Float.Input(
                    "gamma",
                    default=1.5,
                    min=LEAST_GAMMA,
                    max=MOST_GAMMA,
                    step=0.05,
                    tooltip="How many times stronger the noise is. 1.25 to 1.5 suits Euler and other samplers without noise "
                    "of their own; higher values leave blotches there. The paper's 4 (faces) and 2.5 (ImageNet at 64 "
                    "pixels) are for samplers that add noise at each step, such as euler_ancestral.",
                ),
                io.Int.Input(
                    "skip",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip="How many of the first steps are left out. 0: the paper's share, 3 of 250, and at least one "
                    "step. Without a step left out, the model takes the boost back.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="The model with the boosted start, for any sampler."
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        check_values(inputs_of(JEPABoostAndSkip), inputs)
        if text := replaced(inputs["model"], BOOST):
            show_text(cls.hidden.unique_id, text)
        return io.NodeOutput(apply_boost(**inputs))
