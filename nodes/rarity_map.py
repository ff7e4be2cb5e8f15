"""JEPARarityMap: where in an image its rarity lies."""

import torch
from comfy_api.latest import io, ui

from ..host.comfy.required import ProgressBar
from ..host.drawing.rarity_overlay import draw_overlay
from ..host.scoring.rarity_map import rarity_mask, score_fields
from .checks import check_values
from .scoring_inputs import view_inputs
from .types import JEPAEncoder


class JEPARarityMap(io.ComfyNode):
    """Images -> the patch scores laid over them, and as masks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JEPARarityMap",
            display_name="JEPA Rarity Map",
            category="JEPA",
            description="Shows where in an image its rarity lies: the JEPA score of every patch, bright where it is rarer. "
            "Plain areas, which an encoder hardly answers to, come out bright too.",
            inputs=[
                io.Image.Input("images", tooltip="A batch of images; each gets a map of its own."),
                JEPAEncoder.Input("encoder", tooltip="The judge, from JEPA Encoder Loader."),
                io.Float.Input(
                    "opacity",
                    default=0.65,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How much the colours cover the image. The mask is the same at any opacity.",
                ),
                *view_inputs(),
            ],
            outputs=[
                io.Image.Output(
                    display_name="overlay",
                    tooltip="The images in grey under the colours of their maps, each with its own scale below.",
                ),
                io.Mask.Output(
                    display_name="mask",
                    tooltip="1 where an image is rarest, 0 where it is most typical; for inpainting or compositing.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images, encoder, opacity, fit, antialias) -> io.NodeOutput:
        values = {"images": images, "encoder": encoder, "opacity": opacity, "fit": fit}
        check_values(cls.define_schema().inputs, values)
        # a single number has no length, and is refused below
        bar = ProgressBar(images.shape[:1].numel() * len(encoder.members))
        fields = score_fields(images, encoder, fit=fit, antialias=antialias, on_image=lambda: bar.update(1))
        pairs = list(zip(images, fields, strict=True))
        overlay = torch.cat([draw_overlay(image, field, opacity) for image, field in pairs])
        mask = torch.stack([rarity_mask(field) for field in fields])
        return io.NodeOutput(overlay, mask, ui=ui.PreviewImage(overlay, cls=cls))
