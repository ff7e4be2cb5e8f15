"""JEPAMinorityPrompt: a token of the prompt is learned while the image is drawn."""

from typing import Any

from comfy_api.latest import io

from ..host.comfy.page import show_text
from ..host.guidance.brought import replaced
from ..host.guidance.minority_prompt import apply_minority_prompt
from ..host.guidance.prompt_run import PromptLearning
from ..host.guidance.schedule import Schedule
from ..host.options import MINORITY_PROMPT
from .input_checks import check_values, inputs_of
from .sampling_inputs import share_input
from .search_words import search_words

MOST_ITERATIONS = 100
MOST_RATE = 1.0
MOST_BALANCE = 100.0


class JEPAMinorityPrompt(io.ComfyNode):
    """MinorityPrompt (arXiv 2410.07838): MODEL, CLIP, text -> MODEL, CONDITIONING."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JEPAMinorityPrompt",
            display_name="MinorityPrompt",
            category="JEPA/compare",
            description="Adds a token to the prompt and learns it while the image is drawn, so that rarer images of the "
            "prompt come out. Takes the place of CLIP Text Encode. Needs no JEPA encoder and no VAE (Um, Ye, CVPR 2025).",
            **search_words(
                "JEPAMinorityPrompt", "minority, rare, prompt optimization, prompt tuning, diversity"
            ),
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model. It must have a gradient."),
                io.Clip.Input(
                    "clip", tooltip="The CLIP that reads the prompt. Its weights stay as they are."
                ),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="The prompt, as in CLIP Text Encode.",
                ),
                io.Int.Input(
                    "iterations",
                    default=10,
                    min=0,
                    max=MOST_ITERATIONS,
                    tooltip="How many times the token is improved at each learned step. Each takes as long as three to "
                    "five steps without a negative prompt. The paper's are 10, and 3 for SDXL-Lightning. 0: exactly the "
                    "stock sampler.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=0.01,
                    min=0.0,
                    max=MOST_RATE,
                    step=0.001,
                    tooltip="How far each improvement moves the token. The paper's are 0.01, and 0.001 for SDXL-Lightning. "
                    "0: exactly the stock sampler.",
                ),
                io.Int.Input(
                    "interval",
                    default=1,
                    min=1,
                    max=100,
                    tooltip="Learn at every N-th step. The token stays in the prompt from one such step to the next.",
                ),
                io.Float.Input(
                    "balance",
                    default=1.0,
                    min=0.0,
                    max=MOST_BALANCE,
                    step=0.1,
                    tooltip="The paper's lambda: how much it counts that the first estimate moves away from the second, "
                    "beside the second from the first. The paper's is 1.",
                ),
                io.String.Input(
                    "word",
                    default="cool",
                    tooltip="The word that the token starts as. It must be one that the text encoder knows as one token.",
                ),
                share_input(
                    "start_percent", 0.0, "The fraction of this sampler's steps before the token is learned."
                ),
                share_input(
                    "end_percent",
                    0.1,
                    "The fraction of the steps after which the token is no longer learned, but stays in the prompt. The "
                    "authors' code has 0.1, and 1 for SDXL-Lightning. More costs more time.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model that learns, for any sampler."),
                io.Conditioning.Output(
                    display_name="positive", tooltip="The prompt, for the sampler's positive input."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, clip, text, **settings: Any) -> io.NodeOutput:
        check_values(inputs_of(JEPAMinorityPrompt), {"model": model, "clip": clip, "text": text} | settings)
        start, end = settings.pop("start_percent"), settings.pop("end_percent")
        if start == end or not settings["iterations"] or not settings["learning_rate"]:
            return io.NodeOutput(model, clip.encode_from_tokens_scheduled(clip.tokenize(text)))
        if said := replaced(model, MINORITY_PROMPT):
            show_text(cls.hidden.unique_id, said)
        schedule = Schedule(start_percent=start, end_percent=end, interval=settings.pop("interval"))
        return io.NodeOutput(*apply_minority_prompt(model, clip, text, PromptLearning(schedule, **settings)))
