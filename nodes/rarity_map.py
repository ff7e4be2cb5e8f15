"""JEPARarityMap: which parts of an image are rare."""

import torch
from comfy_api.latest import io, ui

from ..host.comfy.required import ProgressBar
from ..host.drawing.rarity_overlay import NOVELTIES, SCORES, draw_overlay
from ..host.scoring.rarity_map import novelty_fields, rarity_mask, score_fields
from ..host.scoring.reference import check_comparable, seen_as
from .input_checks import check_values, inputs_of
from .scoring_inputs import view_inputs
from .search_words import search_words
from .types import JEPAEncoder, JEPAReference


class JEPARarityMap(io.ComfyNode):
    """Scores the patches of images -> the scores as overlays and as masks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JEPARarityMap",
            display_name="JEPA Rarity Map",
            category="JEPA",
            description="Shows which parts of an image are rare: the JEPA score of every patch, bright where it is "
            "rarer. Plain areas are bright too, since an encoder is hardly sensitive to them. With a reference: which parts "
            "make the image unlike it.",
            **search_words("heatmap, saliency, attention, attribution, rare, anomaly"),
            inputs=[
                io.Image.Input("images", tooltip="A batch of images; each gets its own map."),
                JEPAEncoder.Input("encoder", tooltip="Scores the patches. From JEPA Encoder Loader."),
                io.Float.Input(
                    "opacity",
                    default=0.65,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How strongly the colours cover the image. Does not change the mask.",
                ),
                *view_inputs(),
                JEPAReference.Input(
                    "reference",
                    optional=True,
                    tooltip="Shows instead which parts make the image unlike these pictures: where small changes would move "
                    "it most, away from them or back. Much faster than the scores.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="overlay",
                    tooltip="The images in grey under the colours of their maps, each with a colour scale below.",
                ),
                io.Mask.Output(
                    display_name="mask",
                    tooltip="1 where an image is rarest, 0 where it is most typical. For inpainting or compositing.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images, encoder, opacity, fit, antialias, reference=None) -> io.NodeOutput:
        values = {"images": images, "encoder": encoder, "opacity": opacity, "fit": fit}
        if reference is not None:
            values["reference"] = reference
        check_values(inputs_of(JEPARarityMap), values)
        bar = ProgressBar(len(images) * len(encoder.members))
        view = {"fit": fit, "antialias": antialias, "on_image": lambda: bar.update(1)}
        if reference is None:
            fields, legend = score_fields(images, encoder, **view), SCORES
        else:
            check_comparable(reference, encoder, seen_as(fit, antialias))
            fields, legend = novelty_fields(images, encoder, reference, **view), NOVELTIES
        pairs = zip(images, fields, strict=True)
        overlay = torch.cat([draw_overlay(image, field, opacity, legend) for image, field in pairs])
        mask = torch.stack([rarity_mask(field) for field in fields])
        return io.NodeOutput(overlay, mask, ui=ui.PreviewImage(overlay, cls=cls))
