"""JEPAGuidance: guidance as a MODEL patch, for any sampler node."""

from comfy_api.latest import io

from ..host.comfy.page import show_text
from ..host.guidance.patch import apply_guidance
from ..host.guidance.report import TraceReporter
from .guidance_inputs import check_guidance, config_of, guidance_inputs, guides_nothing, off_text
from .input_checks import inputs_of
from .search_words import search_words


class JEPAGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JEPAGuidance",
            display_name="JEPA Guidance",
            category="JEPA",
            description="Guides any sampler of this model (KSampler, SamplerCustomAdvanced, ...) toward images that the "
            "encoder finds rare. The message at the bottom of the node says what each run did.",
            **search_words(
                "JEPAGuidance",
                "rare, rarity, rarer, diversity, variation, seed variance, unusual, novelty, "
                "minority, same face, too similar, boring, original, weird, strength",
            ),
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model to guide."),
                *guidance_inputs(),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The guided model, for any sampler.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, **inputs) -> io.NodeOutput:
        if guides_nothing(inputs):
            show_text(cls.hidden.unique_id, off_text(model, "the model is unchanged"))
            return io.NodeOutput(model)
        check_guidance(inputs_of(JEPAGuidance), {"model": model} | inputs)
        return io.NodeOutput(
            apply_guidance(
                model,
                inputs["vae"],
                inputs["encoder"],
                config_of(inputs),
                judge=inputs.get("judge"),
                reference=inputs.get("reference"),
                report=TraceReporter(cls.hidden.unique_id),
            )
        )
