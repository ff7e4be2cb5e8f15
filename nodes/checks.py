"""What a node says of values that it cannot take."""

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from comfy_api.latest import io

# What this pack uses of the objects that come through links of these types.
USED = {
    "MODEL": "get_model_object",
    "VAE": "throw_exception_if_invalid",
    "JEPA_ENCODER": "members",
    "DJEPA": "class_names",
    "JEPA_TRACE": "steps",
    "JEPA_REFERENCE": "scores",
    "IMAGE": "isfinite",
}


def check_values(inputs: Sequence[io.Input], values: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the input, for the first value that its input does not take.

    The host checks typed values alone: through a link comes whatever the other node gives, of any size and, through
    a switch node, of any type.
    """
    for entry in inputs:
        if entry.id in values and (message := value_message(entry, values[entry.id])):
            raise ValueError(message)


def value_message(entry: io.Input, value: Any) -> str | None:
    """Why an input does not take a value, or None."""
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
    kind = entry.get_io_type()
    if kind == "LATENT":
        fits = isinstance(value, dict) and hasattr(value.get("samples"), "shape")
    else:
        fits = kind not in USED or hasattr(value, USED[kind])
    return None if fits else f"{entry.id} must be of type {kind}, got {type(value).__name__}"


def number_message(name: str, value: Any, low: float, high: float) -> str | None:
    """Why a value is no number from low to high, or None; a linked input is None itself."""
    if value is None:
        return None
    number = not isinstance(value, bool) and isinstance(value, Real)
    if not number:
        return f"{name} must be a number, got {value!r:.100}"
    return None if low <= value <= high else f"{name} {value} is outside {low} to {high}"


def only(name: str, values: list[Any]) -> Any:
    """The value of an input that takes one. Raises ValueError for a list of several."""
    if len(values) != 1:
        raise ValueError(f"{name} must be one value, got a list of {len(values)}")
    return values[0]


def count_images(batches: Sequence[Any]) -> int:
    """How many images batches hold in all. Raises ValueError for none."""
    # a single number has no length, and is refused where it is scored
    total = sum(batch.shape[:1].numel() for batch in batches)
    if total == 0:
        raise ValueError("images holds no image")
    return total
