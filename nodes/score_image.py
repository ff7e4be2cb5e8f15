"""JEPAScoreImage: how rare an encoder finds each image of a batch."""

from comfy_api.latest import io, ui

from ..host.internals import ProgressBar
from ..host.sampling import show_text
from ..host.scoring import score_images
from .checks import check_values
from .types import JEPAEncoder

EXACT = "exact"
TOP_K = "top-k"
PROJECTED = "projected"
# Outputs that the projected mode looks at: Spearman's correlation with the exact score is 0.98 at a
# twentieth of its cost or less (benchmarks/score.json).
PROJECTION = 48


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
                JEPAEncoder.Input("encoder", tooltip="The judge, from JEPA Encoder Loader."),
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
                    tooltip="One score an image, in the order of the batch. Lower is rarer.",
                ),
                io.String.Output(display_name="text", tooltip="The scores as a ranked list, rarest first."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images, encoder, mode, top_k, fit, antialias) -> io.NodeOutput:
        values = {"images": images, "encoder": encoder, "mode": mode, "top_k": top_k, "fit": fit}
        check_values(cls.define_schema().inputs, values)
        bar = ProgressBar(images.shape[:1].numel())  # a single number has no length, and is refused below
        scores = score_images(
            images,
            encoder,
            top_k=top_k if mode == TOP_K else None,
            projection=PROJECTION if mode == PROJECTED else None,
            fit=fit,
            antialias=antialias,
            on_image=lambda: bar.update(1),
        )
        ranked = sorted(enumerate(scores), key=lambda item: item[1])
        how = {EXACT: EXACT, TOP_K: f"top {top_k}", PROJECTED: f"projected on {PROJECTION} outputs"}[mode]
        lines = [f"{rank}. image {index}: {score:.2f}" for rank, (index, score) in enumerate(ranked, 1)]
        text = "\n".join([f"JEPA score ({how}, {encoder.name}), rarest first:", *lines])
        show_text(cls.hidden.unique_id, text)
        return io.NodeOutput(scores, text, ui=ui.PreviewText(text))
