"""The inputs and outputs of nodes that choose images: what decides which are kept, and what goes along with them."""

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..host.comfy.required import ExecutionBlocker
from ..host.comfy.sampling import MAX_SEED
from ..host.options import AUTO, FLOOR_PERCENTILE, FLOOR_VALUE, FLOORS, NO_FLOOR, NOVELTY, PROJECTED, SCORE
from ..host.scoring.along import batched, check_along
from ..host.scoring.floor import check_qualities
from ..jepa_core.reference import EXACT
from ..jepa_core.score import PROJECTION
from .input_checks import check_values, given, is_empty

_LIMIT = 1e6


def mode_input() -> io.Input:
    """How images that are sorted are scored."""
    return io.Combo.Input(
        "mode",
        options=[AUTO, PROJECTED, EXACT],
        default=AUTO,
        tooltip=f"How images are scored. {AUTO}: as the pictures of a linked reference, otherwise {PROJECTED}. {PROJECTED}: "
        f"many times faster and ranks images nearly as {EXACT} does, from {PROJECTION} fixed random outputs of the "
        f"encoder. {EXACT}: all singular values. Scores of different modes are not comparable.",
    )


def by_input(*, optional: bool = False) -> io.Input:
    """What makes an image rare."""
    return io.Combo.Input(
        "by",
        options=[SCORE, NOVELTY],
        default=SCORE,
        optional=optional,
        tooltip=f"What makes an image rare. {SCORE}: the JEPA score, lower is rarer. {NOVELTY}: how far it is from its "
        "nearest in the reference, higher is rarer; many times faster.",
    )


def seeds_input(use: str) -> io.Input:
    """The seeds of images; `use`: a sentence about what they are for."""
    return io.Int.Input(
        "seeds",
        default=0,
        min=0,
        max=MAX_SEED,
        optional=True,
        force_input=True,
        tooltip="A list with the seed of each image, as D-JEPA Sampler gives it; or the one seed of a batch of KSampler, "
        f"whose images differ by their place. {use}",
    )


def latents_input() -> io.Input:
    """The latents that go along with images."""
    return io.Latent.Input(
        "latents",
        optional=True,
        tooltip="The latents of the images, one for each; those of the kept images come out, to be sampled on.",
    )


def kept_outputs() -> list[io.Output]:
    """What is known of the kept images."""
    return [
        io.Float.Output(
            display_name="scores",
            is_output_list=True,
            tooltip="Their scores; lower is rarer. By novelty: their novelties; higher is rarer.",
        ),
        io.Int.Output(
            display_name="indices",
            is_output_list=True,
            tooltip="The position of each among all images, from 0.",
        ),
        io.Int.Output(
            display_name="seeds",
            is_output_list=True,
            tooltip="Their seeds; empty if none were given. The one seed of a batch is repeated, not counted up: the index "
            "tells the image.",
        ),
    ]


def latents_output() -> io.Output:
    """The latents of the kept images."""
    return io.Latent.Output(
        display_name="latents",
        is_output_list=True,
        tooltip="The latents of the kept images: one batch if all have the same size, otherwise one by one. They "
        "remember their place in the batch, so that the same seed gives them the same noise.",
    )


def choice_inputs() -> list[io.Input]:
    """Quality with a floor, a threshold of rarity, a hand-picked list, and what goes along with the images."""
    return [
        io.Float.Input(
            "quality",
            default=0.0,
            min=-_LIMIT,
            max=_LIMIT,
            optional=True,
            force_input=True,
            tooltip="How good each image is: a list with one number for each, higher is better, from any node that scores "
            "images. The chart shows rarity against it.",
        ),
        io.Combo.Input(
            "floor_kind",
            options=list(FLOORS),
            default=NO_FLOOR,
            optional=True,
            tooltip=f"How good an image must be to be kept, however rare it is. {NO_FLOOR}: as it comes. {FLOOR_VALUE}: "
            f"floor is the least quality. {FLOOR_PERCENTILE}: the least quality is at this percentile of all images.",
        ),
        io.Float.Input(
            "floor",
            default=50.0,
            min=-_LIMIT,
            max=_LIMIT,
            step=0.01,
            optional=True,
            tooltip=f"The least quality, or its percentile from 0 to 100: with 50, the better half may be kept. Unused "
            f"while floor_kind is {NO_FLOOR}.",
        ),
        io.Float.Input(
            "threshold",
            default=0.0,
            min=0.0,
            max=100.0,
            step=1.0,
            optional=True,
            tooltip="Keeps only images that are rarer than this percentage of the reference, so fewer than count may be "
            "kept. 0: off. Needs a reference.",
        ),
        io.String.Input(
            "places",
            default="",
            optional=True,
            tooltip="Positions to keep instead of the best, in this order: 0, 3, 5. Counted from 0, as on the chart. Empty: "
            "off. Keep, count and threshold are not used then.",
        ),
        latents_input(),
        io.Mask.Input(
            "masks",
            optional=True,
            tooltip="The masks of the images, one for each; those of the kept images come out.",
        ),
    ]


def choice_outputs() -> list[io.Output]:
    """What goes along with the kept images, the chart, and what is not kept."""
    return [
        latents_output(),
        io.Mask.Output(
            display_name="masks",
            is_output_list=True,
            tooltip="The masks of the kept images: one batch if all have the same size, otherwise one by one.",
        ),
        io.Float.Output(
            display_name="qualities",
            is_output_list=True,
            tooltip="The qualities of the kept images; empty if none were given.",
        ),
        io.Image.Output(
            display_name="chart",
            tooltip="All images by rarity. With quality: rarity against quality, with the floor, and the front of images "
            "that no other exceeds in both.",
        ),
        io.Int.Output(
            display_name="rejected",
            is_output_list=True,
            tooltip="The positions of the images that are not kept, from 0.",
        ),
    ]


def qualities_of(quality: list | None, total: int) -> list[float]:
    """One number for each image; [] if none are linked. Raises ValueError for anything else."""
    numbers = given(quality)
    # some nodes give a list as one value
    if len(numbers) == 1 and isinstance(numbers[0], list | tuple):
        numbers = list(numbers[0])
    if numbers:
        check_qualities(numbers, total)
    return numbers


def latents_of(latents: list | None, total: int) -> list[dict[str, Any]]:
    """Latents with one entry for each image; [] if none are linked. Raises ValueError for anything else."""
    batches = [latent for latent in given(latents) if not is_empty(latent)]
    for latent in batches:
        check_values(choice_inputs(), {"latents": latent})
    if given(latents):
        check_along("latents", [latent["samples"] for latent in batches], total)
    return batches


def masks_of(masks: list | None, total: int) -> list[Tensor]:
    """Batches of masks with one for each image; [] if none are linked. Raises ValueError for anything else."""
    found = [mask for mask in given(masks) if not is_empty(mask)]
    for mask in found:
        check_values(choice_inputs(), {"masks": mask})
    batches = [batched(mask) for mask in found]
    if given(masks):
        check_along("masks", batches, total)
    return batches


def missing(node: str, name: str) -> Any:
    """In place of an output whose input is not linked: stops the nodes that need it, with this message."""
    return ExecutionBlocker(f"{node} has no {name} to give: link its input {name}")
