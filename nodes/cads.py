"""JEPACads: noise on the prompt that fades over the run."""

from typing import Any

from comfy_api.latest import io

from ..host.comfy.page import show_text
from ..host.comfy.sampling import MAX_SEED
from ..host.guidance.brought import replaced
from ..host.options import CADS
from ..host.variety.cads import Cads
from ..host.variety.patch import apply_cads
from .input_checks import check_values, inputs_of
from .sampling_inputs import share_input
from .search_words import search_words

MOST_SCALE = 10.0


class JEPACads(io.ComfyNode):
    """CADS (arXiv 2310.17347): MODEL -> MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JEPACads",
            display_name="CADS",
            category="JEPA/compare",
            description="Adds noise to the prompt that fades over the run, so that one prompt gives more varied images. "
            "Needs no gradient and no encoder, and costs nothing (Sadat et al., ICLR 2024).",
            **search_words("JEPACads", "diversity, seed variance, conditioning noise"),
            inputs=[
                io.Model.Input(
                    "model", tooltip="The diffusion model. JEPA Guidance may come before or after."
                ),
                io.Float.Input(
                    "scale",
                    default=0.1,
                    min=0.0,
                    max=MOST_SCALE,
                    step=0.01,
                    tooltip="How strong the noise is, in units of the prompt's embedding: the paper's s. 0.1 brings new "
                    "details, much more loses the prompt. 0 is off.",
                ),
                share_input(
                    "tau1",
                    0.6,
                    "The share of the diffusion time that is left when the prompt is clean again.",
                ),
                share_input(
                    "tau2",
                    0.9,
                    "The share of the diffusion time that is left when the noise begins to fade; before, the model sees "
                    "noise alone.",
                ),
                share_input(
                    "mix",
                    1.0,
                    "How far the noisy prompt is brought back to the mean and deviation of the clean one: the paper's psi. "
                    "Lower values change more and break images earlier.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=MAX_SEED,
                    control_after_generate=True,
                    tooltip="The seed of the noise on the prompt. Each image of a batch has noise of its own.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="The model with the noisy prompt, for any sampler."
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, seed, **settings: Any) -> io.NodeOutput:
        check_values(inputs_of(JEPACads), {"model": model, "seed": seed} | settings)
        cads = Cads(**settings)
        if cads.scale and (text := replaced(model, CADS)):
            show_text(cls.hidden.unique_id, text)
        return io.NodeOutput(apply_cads(model, cads, seed))
