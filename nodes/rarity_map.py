"""JEPARarityMap: which parts of an image are rare."""

import torch
from comfy_api.latest import io, ui

from ..host.comfy.required import ProgressBar
from ..host.drawing.palettes import PALETTES
from ..host.drawing.rarity_overlay import NOVELTIES, SCORES, draw_legend, draw_overlay, with_plain
from ..host.options import FLOOR_PERCENTILE, FLOOR_VALUE, FLOORS, HEAT, NO_FLOOR
from ..host.scoring.modes import how_beside
from ..host.scoring.rarity_map import novelty_fields, score_fields
from ..host.scoring.rarity_mask import MaskConfig, judged_parts, mask_of, scaled
from ..host.scoring.reference import check_comparable, seen_as, view_of
from .input_checks import check_values, inputs_of
from .scoring_inputs import view_inputs_beside
from .search_words import search_words
from .types import JEPAEncoder, JEPAReference

# Defaults of inputs added later: optional, so that prompts saved without them still run.
LATER_INPUTS = {
    "reference": None,
    "ignore_flat": 0.0,  # the graphs saved without it; a new node begins with SMOOTH
    "threshold_kind": NO_FLOOR,
    "threshold": 80.0,
    "grow": 0,
    "blur": 0.0,
    "invert": False,
    "one_scale": False,
    "palette": HEAT,
}
SMOOTH = 0.03  # local contrast below which an area is plain to the eye
MAX_PIXELS = 256  # of grow and blur


class JEPARarityMap(io.ComfyNode):
    """Scores the patches of images -> the scores as overlays and as masks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JEPARarityMap",
            display_name="JEPA Rarity Map",
            category="JEPA",
            description="Shows which parts of an image are rare, bright where it is rarer, and makes a mask of them for "
            "inpainting. From the JEPA score of every patch, where plain areas are bright too unless ignore_flat leaves "
            "them out; with a reference, from what makes the image unlike it.",
            **search_words(
                "JEPARarityMap",
                "heatmap, saliency, attention, attribution, rare, anomaly, mask, inpaint, inpaint mask, segmentation",
            ),
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
                *view_inputs_beside(),
                JEPAReference.Input(
                    "reference",
                    optional=True,
                    tooltip="Shows instead which parts make the image unlike these pictures: where small changes would move "
                    "it most, away from them or back. Much faster than the scores.",
                ),
                *_scale_inputs(),
                *_mask_inputs(),
                io.Boolean.Input(
                    "one_scale",
                    default=LATER_INPUTS["one_scale"],
                    optional=True,
                    tooltip="On: all images of the batch share one scale, so that the same colour is equally rare in all of "
                    "them, and a percentile is that of the batch. Off: each image has its own.",
                ),
                io.Combo.Input(
                    "palette",
                    options=list(PALETTES),
                    default=LATER_INPUTS["palette"],
                    optional=True,
                    tooltip="The colours of the overlay, from typical to rare. Each also works for colour-blind readers and "
                    "in black and white.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="overlay",
                    tooltip="The images in grey under the colours of their maps, each with a colour scale below.",
                ),
                io.Mask.Output(
                    display_name="mask",
                    tooltip="1 where an image is rarest, 0 where it is most typical; the other way round with invert. For "
                    "Set Latent Noise Mask, VAE Encode (for Inpainting) or compositing.",
                ),
                io.Image.Output(
                    display_name="clean_overlay",
                    tooltip="The overlay without the colour scale, in the size of the images.",
                ),
                io.Image.Output(display_name="legend", tooltip="The colour scale of each image alone."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images, encoder, opacity, fit, antialias, **later) -> io.NodeOutput:
        settings = LATER_INPUTS | later
        reference = settings.pop("reference")
        values = {
            "images": images,
            "encoder": encoder,
            "opacity": opacity,
            "fit": fit,
            "antialias": antialias,
        }
        values |= settings
        if reference is not None:
            values["reference"] = reference
        check_values(inputs_of(JEPARarityMap), values)
        bar = ProgressBar(len(images) * len(encoder.members))
        view = view_of(how_beside(reference, fit=fit, antialias=antialias))
        shown = {**view, "on_image": lambda: bar.update(1)}
        if reference is None:
            fields, legend = score_fields(images, encoder, **shown), SCORES
        else:
            check_comparable(reference, encoder, seen_as(**view))
            fields, legend = novelty_fields(images, encoder, reference, **shown), NOVELTIES
        ignored, palette, together = (settings.pop(name) for name in ("ignore_flat", "palette", "one_scale"))
        scale = scaled(fields, judged_parts(images, fields, ignored), one_scale=together)
        if ignored:
            legend = with_plain(legend)
        maps = zip(images, scale.rarity, scale.judged, strict=True)
        clean = torch.cat([draw_overlay(*one, opacity, palette) for one in maps])
        legends = torch.cat([draw_legend(images.shape[2], ends, palette, legend) for ends in scale.ends])
        overlay = torch.cat([clean, legends], 1)
        mask = mask_of(scale, MaskConfig(**settings, together=together))
        return io.NodeOutput(overlay, mask, clean, legends, ui=ui.PreviewImage(overlay, cls=cls))


def _scale_inputs() -> list[io.Input]:
    """Which parts are judged."""
    return [
        io.Float.Input(
            "ignore_flat",
            default=SMOOTH,
            min=0.0,
            max=0.5,
            step=0.005,
            round=0.001,
            optional=True,
            tooltip="Leaves out plain areas, such as sky or a wall: an encoder is hardly sensitive to them, so a map of "
            "scores shows them bright, rare or not. They stay grey and count as typical. The number is the local contrast "
            f"below which an area is plain: {SMOOTH} for smooth ones, 0.08 for faint patterns too, 0 for none.",
        ),
    ]


def _mask_inputs() -> list[io.Input]:
    """What is done to the mask, in this order."""
    return [
        io.Combo.Input(
            "threshold_kind",
            options=list(FLOORS),
            default=LATER_INPUTS["threshold_kind"],
            optional=True,
            tooltip=f"Makes the mask black and white. {NO_FLOOR}: soft, as the map. {FLOOR_VALUE}: white where the map is "
            f"above threshold percent of its scale. {FLOOR_PERCENTILE}: white in the rarest part; 80 is the rarest fifth of "
            "what is judged.",
        ),
        io.Float.Input(
            "threshold",
            default=LATER_INPUTS["threshold"],
            min=0.0,
            max=100.0,
            step=1.0,
            optional=True,
            tooltip=f"Percent of the scale, or the percentile. Unused while threshold_kind is {NO_FLOOR}.",
        ),
        io.Int.Input(
            "grow",
            default=LATER_INPUTS["grow"],
            min=-MAX_PIXELS,
            max=MAX_PIXELS,
            optional=True,
            tooltip="Makes the rare part larger by this many pixels on all sides, or smaller below 0.",
        ),
        io.Float.Input(
            "blur",
            default=LATER_INPUTS["blur"],
            min=0.0,
            max=float(MAX_PIXELS),
            step=1.0,
            optional=True,
            tooltip="Softens the mask's border: the standard deviation of a Gaussian in pixels. Inpainting blends better "
            "with some.",
        ),
        io.Boolean.Input(
            "invert",
            default=LATER_INPUTS["invert"],
            optional=True,
            tooltip="On: the mask is 1 in the usual part, to keep what is rare and have the rest drawn anew. Comes last: "
            "grow still makes the rare part larger.",
        ),
    ]
