"""JEPAScoreImage: how rare an encoder finds each image of a batch."""

from itertools import chain

from comfy_api.latest import io, ui

from ..host.comfy.page import show_text
from ..host.comfy.required import ProgressBar
from ..host.scoring.reference import check_comparable, percentile
from ..host.scoring.scores import combined_scores, ranking, score_images
from .checks import check_values
from .scoring_inputs import mode_arguments, mode_inputs, scoring_of, view_inputs
from .types import JEPAEncoder, JEPAReference


class JEPAScoreImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JEPAScoreImage",
            display_name="JEPA Score Image",
            category="JEPA",
            description="Scores every image of a batch. Lower is rarer; negative numbers are normal. Compare scores "
            "only under the same encoder, image size and mode.",
            inputs=[
                io.Image.Input("images", tooltip="A batch of images; each one is scored."),
                JEPAEncoder.Input(
                    "encoder",
                    tooltip="The judge, from JEPA Encoder Loader. Not the encoder that guided, if you want to know "
                    "whether a picture became rarer. Several from JEPA Combine Encoders are scored one after the other.",
                ),
                *mode_inputs(),
                *view_inputs(),
                JEPAReference.Input(
                    "reference",
                    optional=True,
                    tooltip="What to compare with, from JEPA Reference Scores: each image then gets a percentile, the share "
                    "of the reference's images that are rarer.",
                ),
            ],
            outputs=[
                io.Float.Output(
                    display_name="scores",
                    is_output_list=True,
                    tooltip="One score an image, in the order of the batch. Lower is rarer. Of several encoders: the "
                    "mean, by their weights.",
                ),
                io.String.Output(display_name="text", tooltip="The scores as a ranked list, rarest first."),
                io.Float.Output(
                    display_name="scores_of_each",
                    is_output_list=True,
                    tooltip="Of several encoders: the batch's scores under the first, then under the second, and so on.",
                ),
                io.Float.Output(
                    display_name="percentiles",
                    is_output_list=True,
                    tooltip="For each image, how much of the reference is rarer, in percent: 3 is a rare image, 50 an "
                    "ordinary one. Empty without a reference.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images, encoder, mode, top_k, fit, antialias, reference=None) -> io.NodeOutput:
        values = {"images": images, "encoder": encoder, "mode": mode, "top_k": top_k, "fit": fit}
        if reference is not None:
            values["reference"] = reference
        check_values(cls.define_schema().inputs, values)
        how = scoring_of(encoder, mode, top_k, fit, antialias)
        if reference is not None:
            check_comparable(reference, how)
        # a single number has no length, and is refused below
        bar = ProgressBar(images.shape[:1].numel() * len(encoder.members))
        each = score_images(
            images,
            encoder,
            **mode_arguments(mode, top_k),
            fit=fit,
            antialias=antialias,
            on_image=lambda: bar.update(1),
        )
        scores = combined_scores(each, encoder)
        percentiles = [percentile(score, reference) for score in scores] if reference is not None else []
        ranked = ranking(scores, each, reference)
        text = "\n".join(["JEPA score, rarest first", *ranked, f"{how['mode']}, {encoder.name}"])
        show_text(cls.hidden.unique_id, text)
        return io.NodeOutput(
            scores, text, list(chain.from_iterable(each)), percentiles, ui=ui.PreviewText(text)
        )
