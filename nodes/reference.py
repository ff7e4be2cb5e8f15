"""JEPAReference: what counts as usual, from images."""

from comfy_api.latest import io

from ..host.comfy.page import show_text
from ..host.comfy.required import ProgressBar
from ..host.scoring.modes import how_of
from ..host.scoring.novelty import own_novelties
from ..host.scoring.reference import make_reference, reference_scores
from ..jepa_core import Reference
from .input_checks import check_values, inputs_of, only, with_images
from .scoring_inputs import reference_inputs
from .search_words import search_words
from .types import JEPAEncoder, JEPAReference

REFERENCE_ENCODER = (
    "The same encoder as in the nodes that use the reference. With JEPA Combine Encoders, the reference is good for each of "
    "them."
)
FEW = 20  # of fewer, none is 1 in 20, the lower of the dial's targets
GOOD = 50
USES = "For JEPA Score Image, JEPA Rank Images, and guidance by novelty."


class JEPAReferenceNode(io.ComfyNode):
    """Images -> a reference, and how rare each of them is among the others."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JEPAReference",
            display_name="JEPA Reference",
            category="JEPA",
            description="Makes a reference from pictures that count as usual: their embeddings and scores. Other images can "
            f"then be told how rare they are beside them. Takes a batch or a list of batches, of any sizes; {GOOD} images "
            "make a good reference.",
            **search_words("JEPAReference", "novelty, usual, typical, baseline, data set, dataset, unlike"),
            is_input_list=True,
            inputs=[
                io.Image.Input(
                    "images", tooltip="The images that count as usual: a batch, or a list of batches."
                ),
                JEPAEncoder.Input("encoder", tooltip=REFERENCE_ENCODER),
                *reference_inputs(),
            ],
            outputs=[
                JEPAReference.Output(display_name="reference", tooltip=USES),
                io.Float.Output(
                    display_name="scores",
                    is_output_list=True,
                    tooltip="The score of each image, in their order; lower is rarer. Empty without scores.",
                ),
                io.Float.Output(
                    display_name="novelties",
                    is_output_list=True,
                    tooltip="How far each image is from its nearest among the others, in their order; higher is rarer. "
                    "Empty for a single image.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, images, encoder, mode, top_k, fit, antialias) -> io.NodeOutput:
        # a node that takes lists gets every input as a list
        judge = only("encoder", encoder)
        settings = {
            name: only(name, values)
            for name, values in {"mode": mode, "top_k": top_k, "fit": fit, "antialias": antialias}.items()
        }
        images = with_images(images)
        for batch in images:
            check_values(inputs_of(JEPAReferenceNode), settings | {"encoder": judge, "images": batch})
        bar = ProgressBar(sum(map(len, images)) * len(judge.members))
        reference = make_reference(
            [image for batch in images for image in batch],
            judge,
            how_of(**settings),
            on_image=lambda: bar.update(1),
        )
        scores = reference_scores(reference, judge)
        show_text(cls.hidden.unique_id, summary(reference, scores))
        return io.NodeOutput(reference, scores, own_novelties(reference, judge))


def summary(reference: Reference, scores: list[float]) -> str:
    """A few lines about the reference and its pictures' scores, for the page."""
    count, different = len(reference), len(reference.distinct)
    text = f"{count} reference image{'s' * (count > 1)}"
    if scores:
        ordered = sorted(scores)
        text += f": {ordered[0]:.2f} (rarest) to {ordered[-1]:.2f}, median {ordered[len(ordered) // 2]:.2f}"
    if different < count:
        text += f"\n{different} of them are different; an image that repeats counts once"
    if different < FEW:
        text += f"\nfew images: each is {100 / different:.0f} % of them, so percentages are coarse; "
        text += f"{GOOD} make a good reference"
    return text
