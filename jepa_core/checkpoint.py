"""Read an encoder's files without trusting them: safetensors and JSON only, no code is executed."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from .architectures import (
    ARCHITECTURES,
    Architecture,
    Pixels,
    Shapes,
    architecture_of,
    known_model_types,
)
from .tensors import MAX_TENSORS, checked_tensors, other_file, unreadable

_MAX_JSON_BYTES = 1 << 20


class EncoderFileError(ValueError):
    """An encoder file is missing, damaged or unsupported. The message names the file."""


class Checkpoint(NamedTuple):
    """The contents of a weights file and the JSON files next to it.

    Attributes:
        file: the weights.
        architecture: the encoder's row in ARCHITECTURES.
        stated: the encoder's entries in config.json, unchecked; empty without one.
        tensors: by the names that the transformers class expects; finite floating-point, not inference tensors.
        pixels: how to prepare pixels for the encoder.
    """

    file: Path
    architecture: Architecture
    stated: Mapping[str, Any]
    tensors: dict[str, Tensor]
    pixels: Pixels

    @property
    def shapes(self) -> Shapes:
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}


def weights_file(path: Path) -> Path:
    """The safetensors file for `path`, a folder or a file. Raises EncoderFileError if there is none."""
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise EncoderFileError(
            f"{file} does not exist; expected a .safetensors file or a folder with model.safetensors"
        )
    if file.suffix != ".safetensors":
        raise EncoderFileError(f"{file} is not a .safetensors file; no other format is loaded")
    return file


def neighbours(file: Path) -> list[Path]:
    """The other files that are read with the weights, whether or not they exist."""
    return [config_path(file), _preprocessor_path(file)]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read an encoder's weights, its entries in config.json and its pixel format.

    Raises:
        EncoderFileError: a missing, damaged or unsupported file.
    """
    file = weights_file(path)
    settings: Mapping[str, Any] = read_config(file)
    with opened(file) as content:
        names = content.keys()
        architecture = _architecture(file, names, settings)
        needed = _needed_names(file, names, architecture)
        tensors = checked_tensors(file, content, needed, EncoderFileError)
    if architecture.container and settings["model_type"] == architecture.container:
        settings = tower_config(file, settings, "vision_config")
    return Checkpoint(file, architecture, settings, tensors, read_pixels(file, architecture))


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """A weights file, as safe_open gives it. Raises EncoderFileError if it is damaged or has too many tensors."""
    try:
        with safe_open(file, framework="pt") as content:
            count = len(content.keys())
            if count > MAX_TENSORS:
                raise EncoderFileError(f"{file} holds {count} tensors, more than any encoder has")
            yield content
    except (SafetensorError, OSError) as error:
        raise EncoderFileError(unreadable(file, error)) from error


def tower_config(file: Path, settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The entries of one tower, such as "vision_config", of a configuration with several. Raises EncoderFileError."""
    if not isinstance(settings.get(name), dict):
        raise EncoderFileError(
            f"{config_path(file)} has no {name}, which model_type {settings['model_type']} needs"
        )
    return settings[name]


def is_complete(folder: Path) -> bool:
    """Whether a folder has a config.json and a complete model.safetensors; its header gives the full length."""
    file = folder / "model.safetensors"
    try:
        architecture = architecture_of(read_config(file).get("model_type"))
        with safe_open(file, framework="pt") as content:
            names = content.keys()
        return architecture is not None and any(name.endswith(architecture.patch_embedding) for name in names)
    except (OSError, ValueError, SafetensorError):
        return False


def read_config(file: Path) -> dict:
    """The configuration of a weights file: NAME.json for NAME.safetensors, else config.json, else {}.

    Raises:
        EncoderFileError: it is not a JSON object, or is larger than any configuration.
    """
    return read_json(config_path(file))


def config_path(file: Path) -> Path:
    """The configuration that belongs to a weights file; it need not exist."""
    own = file.with_suffix(".json")
    return own if own.is_file() else file.with_name("config.json")


def _preprocessor_path(file: Path) -> Path:
    return file.with_name("preprocessor_config.json")


def read_json(path: Path, max_bytes: int = _MAX_JSON_BYTES) -> dict:
    """A JSON object, or {} if there is no such file. Raises EncoderFileError if it is something else, or too large."""
    if not path.is_file():
        return {}
    if path.stat().st_size > max_bytes:
        raise EncoderFileError(f"{path} is larger than any file of its kind")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise EncoderFileError(f"{path} {other_file(path) or f'is not valid JSON: {error}'}") from error
    if not isinstance(settings, dict):
        raise EncoderFileError(f"{path} is not a configuration (a JSON object)")
    return settings


def _architecture(file: Path, names: list[str], settings: Mapping[str, Any]) -> Architecture:
    if "model_type" in settings:
        stated = settings["model_type"]
        architecture = architecture_of(stated)
        if architecture is None:
            raise EncoderFileError(
                f"{config_path(file)} says model_type {stated!r:.100}, which is not supported; supported are "
                f"{', '.join(known_model_types())}"
            )
        return architecture
    # The last match: a DINOv2 with registers also has every tensor of one without.
    fitting = [row for row in ARCHITECTURES.values() if row.signature and _fits(names, row)]
    if not fitting:
        some = ", ".join(sorted(names)[:3])
        raise EncoderFileError(
            f"{file} is not a DINOv2 encoder in the Hugging Face layout (it holds {some} ...); any other encoder needs "
            f"its config.json beside it, or as {file.with_suffix('.json').name}"
        )
    return fitting[-1]


def _fits(names: list[str], architecture: Architecture) -> bool:
    return all(any(name.endswith(end) for name in names) for end in architecture.signature)


def _needed_names(file: Path, names: list[str], architecture: Architecture) -> dict[str, str]:
    """The tensors that the encoder needs: name in the transformers class -> name in the file.

    In models with a head, the encoder's names have a prefix.
    """
    for prefix in ("", f"{architecture.model_type}."):
        needed = {
            name.removeprefix(prefix): name
            for name in names
            if name.startswith(tuple(prefix + part for part in architecture.parts))
            # a buffer that older versions of transformers saved
            and not name.endswith(".position_ids")
        }
        if any(name.endswith(architecture.patch_embedding) for name in needed):
            return needed
    some = ", ".join(sorted(names)[:3])
    raise EncoderFileError(
        f"{file} is not a {architecture.title} encoder in the Hugging Face layout, which model_type in "
        f"{config_path(file)} says it is: it has no {architecture.patch_embedding} (it holds {some} ...)"
    )


def read_pixels(file: Path, architecture: Architecture) -> Pixels:
    """How pixels are prepared: the architecture's own way, or that of preprocessor_config.json."""
    usual = architecture.pixels
    if not architecture.uses_preprocessor_config:
        return usual
    path = _preprocessor_path(file)
    settings = read_json(path)
    mean = _three_fractions(path, "image_mean", settings.get("image_mean", list(usual.mean)))
    std = _three_fractions(path, "image_std", settings.get("image_std", list(usual.std)))
    if 0 in std:
        raise EncoderFileError(f"{path}: image_std {std} divides by zero")
    resample = settings.get("resample")
    if resample is None:
        return Pixels(mean, std, usual.interpolation)
    known = {2: "bilinear", 3: "bicubic"}  # Pillow's constants
    if resample not in list(known):
        raise EncoderFileError(f"{path}: resample {resample!r:.100} is neither 2 (bilinear) nor 3 (bicubic)")
    return Pixels(mean, std, known[resample])


def _three_fractions(path: Path, name: str, value: Any) -> tuple[float, float, float]:
    numbers = value if isinstance(value, list) else []
    numbers = [n for n in numbers if isinstance(n, int | float) and not isinstance(n, bool) and 0 <= n <= 1]
    if numbers != value or len(numbers) != 3:
        raise EncoderFileError(f"{path}: {name} {value!r:.100} is not three numbers from 0 to 1")
    red, green, blue = map(float, numbers)
    return red, green, blue
