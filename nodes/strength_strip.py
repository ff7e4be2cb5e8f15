"""JEPAStrengthStrip: one seed at several strengths."""

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io, ui

from ..host.comfy.page import show_text
from ..host.comfy.sampling import stock_sample
from ..host.comfy.vae import stock_decode
from ..host.drawing.pictures import labelled_sheet, rows_that_fit
from ..host.encoders.host_encoder import AnyEncoder
from ..host.guidance.brought import brought
from ..host.guidance.notes import note_in_images
from ..host.guidance.trace import Trace
from ..host.scoring.along import kept_latents, kept_pictures
from ..host.scoring.prompt_pictures import check_one_picture
from ..host.scoring.rarity import measure_of, rarity_beside
from ..host.scoring.reference import check_comparable, part_of, seen_as
from ..host.scoring.strengths import strengths_of
from .guidance_inputs import MAX_STRENGTH, VIEW, criterion_of, values_of
from .guided_sampling import SAMPLING, check_all_but_seed, guided_model, guided_sampling_inputs
from .search_words import search_words


class JEPAStrengthStrip(io.ComfyNode):
    """JEPAGuidedKSampler at several strengths -> the images, side by side and labelled."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JEPAStrengthStrip",
            display_name="JEPA Strength Strip",
            category="JEPA",
            description="Gives one seed at several strengths of guidance, side by side, with how rare each image became: to "
            "find the strength that suits. The other inputs are those of JEPA Guided KSampler.",
            **search_words(
                "JEPAStrengthStrip",
                "strength, compare, comparison, xy plot, grid, sweep, side by side, rarity",
            ),
            inputs=[_strengths_input() if one.id == "strength" else one for one in guided_sampling_inputs()],
            outputs=[
                io.Image.Output(
                    display_name="images",
                    tooltip="The images, in the order of the strengths. Of a batch: its first image at all strengths, then "
                    "its second, and so on.",
                ),
                io.Image.Output(
                    display_name="strip",
                    tooltip="The images side by side, labelled with strength and rarity: a single image to save. Each image "
                    "of a batch has a row.",
                ),
                io.Latent.Output(
                    display_name="latents", tooltip="The latents of the images, in the same order."
                ),
                io.Float.Output(
                    display_name="scores",
                    is_output_list=True,
                    tooltip="The score of each image; lower is rarer. Where the strip tells novelty: the novelty of each; "
                    "higher is rarer.",
                ),
                io.Float.Output(
                    display_name="rarer_than",
                    is_output_list=True,
                    tooltip="The percentage of the reference than which each image is rarer; higher is rarer. Empty without "
                    "a reference.",
                ),
                io.Float.Output(
                    display_name="strengths", is_output_list=True, tooltip="The strength of each image."
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, strengths: str | None = None) -> bool | str:
        # one input alone: the host blames each that is asked for here, and no longer checks it
        try:
            return strengths is None or bool(strengths_of(strengths, MAX_STRENGTH))
        except ValueError as error:
            return str(error)

    @classmethod
    def execute(cls, model, latent_image, strengths, **inputs) -> io.NodeOutput:
        values = {"model": model, "latent_image": latent_image, "strengths": strengths, **inputs}
        check_all_but_seed(JEPAStrengthStrip, values)
        each = strengths_of(strengths, MAX_STRENGTH)
        check_one_picture(latent_image)
        rows = len(latent_image["samples"])
        if rows > (fit := rows_that_fit(lines=2)):
            raise ValueError(f"latent_image holds {rows} images, each a row of the strip; use {fit} at most")
        sampling = {name: inputs.pop(name) for name in SAMPLING}
        settings = values_of(inputs)
        reference, view = settings["reference"], {name: settings[name] for name in VIEW}
        measured = _measuring(settings)
        if reference is not None:
            check_comparable(reference, measured, seen_as(**view))

        reports = [
            _Report(cls.hidden.unique_id, f"strength {one:g}, {number} of {len(each)}")
            for number, one in enumerate(each, 1)
        ]
        # what cannot be guided is refused before the first image
        models = [
            guided_model(model, latent_image, sampling["sampler_name"], inputs | {"strength": one}, report)
            for one, report in zip(each, reports, strict=True)
        ]
        latents = [stock_sample(one, latent_image, **sampling) for one in models]
        # the decoder only afterwards: it need not fit on the device together with the denoiser
        pictures = [stock_decode(settings["vae"], latent) for latent in latents]
        order = [column * rows + row for row in range(rows) for column in range(len(each))]
        (images,), (latent,) = kept_pictures(pictures, order), kept_latents(latents, order)

        by = measure_of(criterion_of(settings), reference)
        rarity = rarity_beside(images, measured, reference, by=by, **view)
        names = [_named(one, brought(model)) for one in each]
        labels = [f"{name}\n{rarity.text(place, by)}" for place, name in enumerate(names * rows)]
        strip = labelled_sheet(list(images), labels, columns=len(each))
        lines = [label.replace("\n", ": ") for label in labels]
        # what strength 0 does is on its label
        runs = zip(each, reports, strict=True)
        lines += dict.fromkeys(report.trace.instead for one, report in runs if one and report.trace.instead)
        show_text(cls.hidden.unique_id, "\n".join(lines))
        for one, report in zip(each, reports, strict=True):
            run = {"strength": one, **sampling, **settings}
            note_in_images(cls.hidden, run, report.trace.as_json(), f"strength {one:g}")
        return io.NodeOutput(
            images,
            strip,
            latent,
            rarity.values,
            rarity.rarer_than,
            each * rows,
            ui=ui.PreviewImage(strip, cls=cls),
        )


class _Report:
    """Shows the trace of one strength as text on the node.

    Attributes:
        trace: the last trace reported.
    """

    def __init__(self, node_id: str | None, heading: str) -> None:
        self.trace = Trace()
        self._node_id = node_id
        self._heading = heading

    def __call__(self, trace: Trace) -> None:
        self.trace = trace
        if not trace.instead:
            show_text(self._node_id, f"{self._heading}\n{trace.message()}")


def _strengths_input() -> io.Input:
    return io.String.Input(
        "strengths",
        default="-1, 0, 0.5, 1, 2",
        tooltip="How far to guide, a number for each image, from -10 to 10. Positive: rarer. Negative: more typical (this "
        "can reinforce bias). 0: exactly the stock sampler. Each takes the time of one run of JEPA Guided KSampler.",
    )


def _measuring(settings: dict[str, Any]) -> AnyEncoder:
    """Who tells how rare the images are: the judge, unless there is none or the reference does not know it."""
    judge, reference = settings["judge"], settings["reference"]
    if judge is None:
        return settings["encoder"]
    known = reference is None or all(part_of(reference, one.encoder) for one in judge.members)
    return judge if known else settings["encoder"]


def _named(strength: float, others: Sequence[str]) -> str:
    """What the strip says of a strength. others: the nodes whose patches MODEL brings, which 0 leaves as they are."""
    if strength:
        return f"strength {strength:g}"
    return f"strength 0: as {' and '.join(others)} made it" if others else "strength 0: unguided"
