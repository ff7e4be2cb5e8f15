"""JEPAScoreImage: the JEPA score of each image in a batch."""

from itertools import chain

from comfy_api.latest import io, ui

from ..host.comfy.page import show_text
from ..host.comfy.required import ProgressBar
from ..host.scoring.comparison import Comparison, check_scored_alike, compare, ranking
from ..host.scoring.modes import how_beside
from ..host.scoring.reference import view_of
from ..host.scoring.scores import combined_scores, score_images
from ..jepa_core.reference import scoring_of
from .input_checks import check_values, inputs_of
from .scoring_inputs import mode_inputs, view_inputs_beside
from .search_words import search_words
from .types import JEPAEncoder, JEPAReference


class JEPAScoreImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JEPAScoreImage",
            display_name="JEPA Score Image",
            category="JEPA",
            description="Scores how typical an encoder finds each image of a batch. Lower is rarer; negative numbers are "
            "normal. A reference says how many of its images each is rarer than. Compare scores only at the same encoder, "
            "image size and mode.",
            **search_words("JEPAScoreImage", "rarity, novelty, unusual, outliers, typical, rate, measure"),
            inputs=[
                io.Image.Input("images", tooltip="A batch of images; each one is scored."),
                JEPAEncoder.Input(
                    "encoder",
                    tooltip="Scores the images. To find out whether guidance made them rarer, use another encoder than the "
                    "one that guided. With JEPA Combine Encoders, images are scored under each encoder in turn.",
                ),
                *mode_inputs(),
                *view_inputs_beside(),
                JEPAReference.Input(
                    "reference",
                    optional=True,
                    tooltip="Says of each image how many of the reference images it is rarer than, by score and by novelty. "
                    "From JEPA Reference.",
                ),
            ],
            outputs=[
                io.Float.Output(
                    display_name="scores",
                    is_output_list=True,
                    tooltip="One score per image, in the order of the batch. Lower is rarer. With several encoders: their "
                    "weighted mean.",
                ),
                io.String.Output(display_name="text", tooltip="The scores as a ranked list, rarest first."),
                io.Float.Output(
                    display_name="scores_of_each",
                    is_output_list=True,
                    tooltip="With several encoders: all scores under the first, then all under the second, and so on.",
                ),
                io.Float.Output(
                    display_name="rarer_than",
                    is_output_list=True,
                    tooltip="For each image, the percentage of reference images with a higher score: 97 is a rare image, 50 "
                    "an ordinary one. Empty without a reference, or if it has no scores.",
                ),
                io.Float.Output(
                    display_name="novelties",
                    is_output_list=True,
                    tooltip="For each image, how far it is from its nearest in the reference, to the encoder. Higher is "
                    "rarer. With several encoders: their weighted mean, each in units of the reference's median. Empty "
                    "without a reference.",
                ),
                io.Float.Output(
                    display_name="more_novel_than",
                    is_output_list=True,
                    tooltip="For each image, the percentage of reference images that are less novel among the others: 97 is "
                    "a rare image, 50 an ordinary one. Empty without a reference, or if it has one image.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images, encoder, mode, top_k, fit, antialias, reference=None) -> io.NodeOutput:
        values = {"images": images, "encoder": encoder, "mode": mode, "top_k": top_k, "fit": fit}
        values["antialias"] = antialias
        if reference is not None:
            values["reference"] = reference
        check_values(inputs_of(JEPAScoreImage), values)
        how = how_beside(reference, mode=mode, top_k=top_k, fit=fit, antialias=antialias)
        if reference is not None:
            check_scored_alike(reference, encoder, how)
        bar = ProgressBar(len(images) * len(encoder.members))
        each = score_images(
            images,
            encoder,
            **scoring_of(how["mode"]),
            **view_of(how),
            on_image=lambda: bar.update(1),
        )
        scores = combined_scores(each, encoder)
        compared = compare(images, scores, encoder, reference, how) if reference is not None else None
        ranked = ranking(scores, each, compared)
        # the list comes last: the page renders Markdown, in which a line below a list belongs to its last item
        text = "\n".join([f"rarest first; {how['mode']}, {encoder.name}", *ranked])
        show_text(cls.hidden.unique_id, text)
        beside = compared or Comparison()
        return io.NodeOutput(
            scores,
            text,
            list(chain.from_iterable(each)),
            list(beside.rarer_than),
            list(beside.novelties),
            list(beside.more_novel_than),
            ui=ui.PreviewText(text),
        )
