"""JEPAPromptFit: how well images fit a text."""

from comfy_api.latest import io, ui

from ..host.comfy.page import show_text
from ..host.comfy.required import ProgressBar
from ..host.encoders.menu import FACTS, clip_file, clip_names, menu_facts
from ..host.scoring.prompt_fit import PromptScorer, load_prompt_scorer, prompt_fits, ranked_fits
from .input_checks import check_values, inputs_of, is_empty
from .search_words import search_words
from .types import JEPAPromptScorer

_SHOWN = 120  # characters of a text, in a message


class JEPAPromptFit(io.ComfyNode):
    """A text and a CLIP -> how well each image fits, and both for other nodes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        names = clip_names()
        return io.Schema(
            node_id="JEPAPromptFit",
            display_name="JEPA Prompt Fit",
            category="JEPA",
            description="Measures how well images show what a text says, by CLIP. Higher is better; pictures that fit have "
            "about 0.2 to 0.35. Compare only fits to the same text, with the same model.",
            **search_words(
                "JEPAPromptFit",
                "CLIP score, CLIP similarity, prompt adherence, prompt alignment, "
                "text image similarity, does it match the prompt",
            ),
            inputs=[
                io.String.Input(
                    "text",
                    default="",
                    multiline=True,
                    tooltip="What the images should show, in English: mostly the prompt, or the part of it that matters. A "
                    "short plain sentence is measured best. CLIP reads about 50 words; the node says what it leaves out.",
                ),
                io.Combo.Input(
                    "model",
                    options=names,
                    default="CLIP-ViT-B-32-laion2B-s34B-b79K",
                    extra_dict={FACTS: menu_facts(names)},
                    tooltip="The CLIP that compares. Installed ones come first; the others are downloaded on first use, "
                    "with their tokenizer. The default is fast; larger ones see more detail. Fits of different models are "
                    "not comparable.",
                ),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="A batch of images; each one is compared with the text. Its centre square is seen. Leave it "
                    "empty to use only the output prompt_fit.",
                ),
                io.Boolean.Input(
                    "non_commercial",
                    default=False,
                    optional=True,
                    tooltip="Allows the download of models licensed for non-commercial use only. Off: such a model is "
                    "refused, unless its files are already there.",
                ),
            ],
            outputs=[
                io.Float.Output(
                    display_name="fits",
                    is_output_list=True,
                    tooltip="One number per image, in the order of the batch, from -1 to 1. Higher fits better. Empty "
                    "without images.",
                ),
                io.String.Output(display_name="text", tooltip="The fits as a ranked list, best first."),
                JEPAPromptScorer.Output(
                    display_name="prompt_fit",
                    tooltip="The text and the model, for a node that measures its own images while it works.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, text, model, images=None, non_commercial=False) -> io.NodeOutput:
        if is_empty(images):
            images = None
        values = {"text": text, "non_commercial": non_commercial}
        check_values(inputs_of(JEPAPromptFit), values if images is None else values | {"images": images})
        check_text(text)
        bar = ProgressBar(1)
        file = clip_file(
            model,
            non_commercial=non_commercial,
            on_progress=lambda done, total: bar.update_absolute(done, total),
        )
        scorer = load_prompt_scorer(file, model, text)
        fits = prompt_fits(images, scorer) if images is not None else []
        summary = described(fits, scorer)
        show_text(cls.hidden.unique_id, summary)
        return io.NodeOutput(fits, summary, scorer, ui=ui.PreviewText(summary))


def check_text(text: str) -> None:
    """Raise ValueError unless there is something in the text."""
    if not text.strip():
        raise ValueError("text is empty; write what the images should show")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text holds half of a character at position {error.start}, {text[error.start]!r}; type it again"
        ) from None


def described(fits: list[float], scorer: PromptScorer) -> str:
    """What the fits were measured with, what the model does not read of the text, and the ranked fits.

    The list comes last: the page renders Markdown, in which a line below a list belongs to its last item.
    """
    what = "prompt fit, best first" if fits else "prompt fit: no images"
    lines = [f'{what}; "{shortened(scorer.text)}", {scorer.name}']
    if scorer.unread:
        lines.append(
            f'Too long for this CLIP, which does not read the end: "{shortened(scorer.unread)}". Shorten the text, or '
            "put first what matters."
        )
    return "\n".join([*lines, *ranked_fits(fits)])


def shortened(text: str) -> str:
    """A text in one line, cut off where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN].rstrip()} ..."
