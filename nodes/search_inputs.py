"""The inputs of a search beside those of KSampler."""

from comfy_api.latest import io

from ..host.options import FLOORS, NO_FLOOR, NO_VARIETY, NOVELTY, RAREST, SCORE, TYPICAL, VARIETIES
from .types import JEPAEncoder, JEPAPromptScorer, JEPAReference

MOST = 1024  # candidates
MOST_VARIETY = 6.0
ADVANCED = {"advanced": True}  # the oldest host has no argument for it


def search_inputs() -> list[io.Input]:
    """Everything a search has beside KSampler's inputs; their order is frozen."""
    return [
        io.Vae.Input("vae", tooltip="Decodes the candidates, in small, for the encoder."),
        JEPAEncoder.Input("encoder", tooltip="Says which candidates are rare. From JEPA Encoder Loader."),
        *_candidates(),
        *_variety(),
        *_floor(),
        *_technical(),
        *_optional(),
    ]


def _candidates() -> list[io.Input]:
    """How many images are begun and kept, and when the others are dropped."""
    return [
        io.Int.Input(
            "candidates",
            default=16,
            min=1,
            max=MOST,
            tooltip="How many images are begun. More find rarer ones and take longer.",
        ),
        io.Int.Input("count", default=4, min=1, max=MOST, tooltip="How many are finished and kept, at most."),
        io.Combo.Input(
            "keep",
            options=[RAREST, TYPICAL],
            default=RAREST,
            tooltip=f"Which are kept, best first. Keeping the {TYPICAL} can reinforce bias.",
        ),
        io.String.Input(
            "looks",
            default="0.4, 0.7",
            tooltip="After which shares of the steps candidates are dropped. From 16 candidates, 8 are left after the first "
            "look and 4 after the second. Early looks save more time and judge more blurred images. Empty: all are "
            "finished.",
        ),
        io.Combo.Input(
            "by",
            options=[SCORE, NOVELTY],
            default=SCORE,
            tooltip=f"What makes an image rare. {SCORE}: the JEPA score (projected), lower is rarer. {NOVELTY}: how far it "
            "is from its nearest in the reference, higher is rarer; much faster.",
        ),
    ]


def _variety() -> list[io.Input]:
    """What widens the search."""
    return [
        io.Combo.Input(
            "variety",
            options=list(VARIETIES),
            default=NO_VARIETY,
            tooltip="Widens what is searched, for models that draw one picture a prompt. Kept images are then no longer "
            "those of KSampler. CADS: noise on the prompt that fades (arXiv 2310.17347). Boost-and-Skip: a start with "
            "stronger noise (arXiv 2502.06516).",
        ),
        io.Float.Input(
            "amount",
            default=1.0,
            min=0.0,
            max=MOST_VARIETY,
            step=0.05,
            round=0.001,
            tooltip="How much variety: 1 is mild, from 3 on the prompt is lost. CADS: noise of 0.1 times this. "
            "Boost-and-Skip: noise stronger by half of this; samplers with noise of their own bear more.",
        ),
    ]


def _floor() -> list[io.Input]:
    """The least quality of what is kept."""
    return [
        io.Combo.Input(
            "floor_kind",
            options=list(FLOORS),
            default=NO_FLOOR,
            tooltip="Rare, but right: images of too little quality are never kept. value: a number. percentile: a share of "
            "the candidates, 50 is their median. Needs prompt_fit or quality.",
        ),
        io.Float.Input(
            "floor",
            default=50.0,
            min=-1e6,
            max=1e6,
            step=0.5,
            round=0.0001,
            tooltip="The least quality, as floor_kind says.",
        ),
    ]


def _technical() -> list[io.Input]:
    """Memory, and what KSampler (Advanced) has."""
    return [
        io.Int.Input(
            "rows_at_once",
            default=0,
            min=0,
            max=MOST,
            extra_dict=ADVANCED,
            tooltip="How many candidates go through the denoiser in one call; 0 for as many as fit in memory. With 1, a "
            "kept image is bit for bit what KSampler draws alone for its place in the batch, without variety and with "
            "samplers that draw no noise of their own; otherwise up to rounding.",
        ),
        io.Int.Input(
            "start_at_step",
            default=0,
            min=0,
            max=10000,
            extra_dict=ADVANCED,
            tooltip="As in KSampler (Advanced).",
        ),
        io.Int.Input(
            "end_at_step",
            default=10000,
            min=1,
            max=10000,
            extra_dict=ADVANCED,
            tooltip="As in KSampler (Advanced).",
        ),
        io.Boolean.Input(
            "add_noise",
            default=True,
            extra_dict=ADVANCED,
            tooltip="Off for a latent that holds noise already. Without noise, candidates of one latent are all alike.",
        ),
    ]


def _optional() -> list[io.Input]:
    """What may be linked."""
    return [
        JEPAReference.Input(
            "reference",
            optional=True,
            tooltip="What counts as usual: needed to search by novelty. Candidates are seen as its pictures were. From JEPA "
            "Reference.",
        ),
        JEPAPromptScorer.Input(
            "prompt_fit",
            optional=True,
            tooltip="Measures at every look how well candidates fit a text, for the floor. From JEPA Prompt Fit.",
        ),
        io.Float.Input(
            "quality",
            optional=True,
            force_input=True,
            tooltip="A list with the quality of each candidate, from any scorer, for instance of a draft with few steps. "
            "Those below the floor are not begun.",
        ),
    ]
