"""JEPAScoreImage: how rare an encoder finds each image of a batch."""

from itertools import chain

from comfy_api.latest import io, ui

from ..host.internals import ProgressBar
from ..host.latent_gradient import PROJECTION
from ..host.page import show_text
from ..host.scoring import combined_scores, score_images
from .checks import check_values
from .types import JEPAEncoder

EXACT = "exact"
TOP_K = "top-k"
PROJECTED = "projected"


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
                io.Combo.Input(
                    "mode",
                    options=[EXACT, TOP_K, PROJECTED],
                    default=EXACT,
                    tooltip="exact: all singular values of the encoder's Jacobian, one backward pass for each "
                    "embedding entry. top-k: only the largest, several times faster. projected: for ranking many "
                    f"images, the fastest; {PROJECTION} fixed random outputs of the encoder, whose score ranks nearly as "
                    "the exact one does. Scores of different modes are not comparable.",
                ),
                io.Int.Input(
                    "top_k",
                    default=9,
                    min=1,
                    max=256,
                    tooltip="How many of the largest singular values the top-k mode sums; 9 is what guidance uses. "
                    "Costs 6 (k + 4) products against 384 for exact under a small encoder. Ignored by the other modes.",
                ),
                io.Combo.Input(
                    "fit",
                    options=["squash", "crop"],
                    default="squash",
                    tooltip="How an image that is not square reaches the encoder: squashed to a square (the paper) "
                    "or its centre square alone.",
                ),
                io.Boolean.Input(
                    "antialias",
                    default=True,
                    tooltip="Low-pass before shrinking, as the encoder was trained.",
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
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images, encoder, mode, top_k, fit, antialias) -> io.NodeOutput:
        values = {"images": images, "encoder": encoder, "mode": mode, "top_k": top_k, "fit": fit}
        check_values(cls.define_schema().inputs, values)
        # a single number has no length, and is refused below
        bar = ProgressBar(images.shape[:1].numel() * len(encoder.members))
        each = score_images(
            images,
            encoder,
            top_k=top_k if mode == TOP_K else None,
            projection=PROJECTION if mode == PROJECTED else None,
            fit=fit,
            antialias=antialias,
            on_image=lambda: bar.update(1),
        )
        scores = combined_scores(each, encoder)
        how = {EXACT: EXACT, TOP_K: f"top {top_k}", PROJECTED: f"projected on {PROJECTION} outputs"}[mode]
        text = f"JEPA score ({how}, {encoder.name}), rarest first:\n" + "\n".join(
            f"{rank}. image {index}: {score:.2f}"
            + (f" ({', '.join(f'{own[index]:.2f}' for own in each)})" if len(each) > 1 else "")
            for rank, (index, score) in enumerate(sorted(enumerate(scores), key=lambda item: item[1]), 1)
        )
        show_text(cls.hidden.unique_id, text)
        return io.NodeOutput(scores, text, list(chain.from_iterable(each)), ui=ui.PreviewText(text))
