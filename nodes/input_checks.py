"""Validation of input values, and the messages for values that do not fit."""

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..host.comfy.values import image_message, latent_message, mask_message

# An attribute of each link type's objects that this pack relies on.
USED = {
    "MODEL": "get_model_object",
    "VAE": "throw_exception_if_invalid",
    "CLIP": "encode_from_tokens_scheduled",
    "JEPA_ENCODER": "members",
    "DJEPA": "class_names",
    "JEPA_TRACE": "steps",
    "JEPA_REFERENCE": "parts",
    "JEPA_PROMPT_FIT": "text",
    "JEPA_GUIDANCE_SETTINGS": "chosen",
    "CONDITIONING": "append",
}
# What is wrong with a value of these types.
MESSAGES = {"IMAGE": image_message, "MASK": mask_message, "LATENT": latent_message}


def inputs_of(node: type[io.ComfyNode]) -> list[io.Input]:
    """A node's inputs, with its menus as they are now: files, and the samplers that other packs added."""
    return node.define_schema().inputs


def check_values(inputs: Sequence[io.Input], values: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the input, for the first value that does not fit its input.

    The host checks only typed values. A link can carry values out of range and, through a switch node, of any type.
    """
    for entry in inputs:
        if entry.id in values and (message := value_message(entry, values[entry.id])):
            raise ValueError(message)


def value_message(entry: io.Input, value: Any) -> str | None:
    """Why a value does not fit its input, or None if it does."""
    if isinstance(entry, io.Combo.Input):
        if isinstance(value, str) and value in entry.options:
            return None
        return f"{entry.id} must be one of {', '.join(entry.options)}, got {value!r:.100}"
    if isinstance(entry, io.Int.Input | io.Float.Input):
        if value is None:
            return f"{entry.id} must be a number, got None"
        if isinstance(entry, io.Int.Input) and not isinstance(value, Integral):
            return f"{entry.id} must be a whole number, got {value!r:.100}"
        return number_message(entry.id, value, entry.min, entry.max)
    if isinstance(entry, io.Boolean.Input):
        # links may carry 0 and 1
        fits = isinstance(value, Integral) and value in (0, 1)
        return None if fits else f"{entry.id} must be true or false, got {value!r:.100}"
    if isinstance(entry, io.String.Input):
        return None if isinstance(value, str) else f"{entry.id} must be text, got {value!r:.100}"
    kind = entry.get_io_type()
    if kind in MESSAGES:
        return MESSAGES[kind](entry.id, value)
    fits = kind not in USED or hasattr(value, USED[kind])
    return None if fits else f"{entry.id} must be of type {kind}, got {type(value).__name__}"


def number_message(name: str, value: Any, low: float, high: float) -> str | None:
    """Why a value is not a number from low to high, or None if it is. A linked input has the value None and passes."""
    if value is None:
        return None
    number = not isinstance(value, bool) and isinstance(value, Real)
    if not number:
        return f"{name} must be a number, got {value!r:.100}"
    return None if low <= value <= high else f"{name} {value} is outside {low} to {high}"


def only(name: str, values: list[Any]) -> Any:
    """The single value in the list that the host passes. Raises ValueError for any other number of values."""
    if len(values) != 1:
        raise ValueError(f"{name} must be one value, got a list of {len(values)}")
    return values[0]


def given(values: Sequence[Any] | None) -> list[Any]:
    """The values of an optional input, from the list that the host passes; [] if nothing is linked."""
    return [] if values is None or list(values) == [None] else list(values)


def with_images(batches: Sequence[Any]) -> list[Any]:
    """The batches without the empty ones, which lists of other nodes may have. Raises ValueError if none is left."""
    found = [batch for batch in batches if not is_empty(batch)]
    if not found:
        raise ValueError("images holds no image; link a node that gives at least one")
    return found


def is_empty(batch: Any) -> bool:
    """Whether this is a batch of images or masks, or a LATENT, without any image."""
    tensor = batch.get("samples") if isinstance(batch, dict) else batch
    return isinstance(tensor, Tensor) and tensor.shape[:1] == (0,)


def seeds_of(seeds: list | None, total: int) -> list[int]:
    """One seed for each image; a single seed applies to all, as to a batch of KSampler.

    Raises:
        ValueError: any other number of seeds.
    """
    each = given(seeds)
    if not all(isinstance(seed, Integral) and not isinstance(seed, bool) for seed in each):
        raise ValueError(f"seeds must be whole numbers, got {each!r:.100}")
    each = [int(seed) for seed in each]
    if len(each) == 1:
        return each * total
    if each and len(each) != total:
        raise ValueError(
            f"seeds holds {len(each)} seeds for {total} images; give one for all, or one for each"
        )
    return each


def places_in_batches(seeds: Sequence[int], batches: Sequence[Any]) -> list[int]:
    """The place of each image in its batch, where one seed stands for several images; [] where each has its own.

    One seed does not say how its batch was drawn: in place 2 of seed 5, KSampler draws an image that no seed gives alone,
    D-JEPA Sampler the one that seed 7 does. So seeds are never counted up, and the place tells the image in both.
    """
    places = [place for batch in batches for place in range(len(batch))]
    return places if len(places) > 1 and len(set(seeds)) == 1 else []


def seed_words(seeds: Sequence[int], batches: Sequence[Any]) -> list[str]:
    """What a sheet says of the seed of each image, with its place if the seed is that of a batch; [] without seeds."""
    if places := places_in_batches(seeds, batches):
        return [f"seed {seed}, place {place}" for seed, place in zip(seeds, places, strict=True)]
    return [f"seed {seed}" for seed in seeds]
