"""D-JEPA's weight files: safetensors with the sizes in the header, read without trusting them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..tensors import MAX_TENSORS, checked_tensors, unreadable
from ..writing import writing_into
from .config import DJEPAConfig
from .model import DJEPA
from .published import KL16_SCALE, from_published, is_published
from .tokenizer import CHANNELS, Tokenizer

FORMAT = "djepa-1"
TOKENIZER = "tokenizer."
# Only training needs these tensors, so files may omit them.
PROJECTION = "projection."

_MAX_NAME = 100  # characters in a class name


class DJEPAFileError(ValueError):
    """A file without a usable D-JEPA. The message names the file, what is wrong and what to do."""


@dataclass(frozen=True)
class LoadedDJEPA:
    """A D-JEPA for sampling.

    Attributes:
        model: in evaluation mode, float32, on the CPU, without gradients.
        tokenizer: its autoencoder; None if the file has none, so that another one must decode.
        class_names: one per class.
        latent_scale: the model's tokens are the autoencoder's latents times this (0.2325 for KL-16).
    """

    model: DJEPA
    tokenizer: Tokenizer | None
    class_names: tuple[str, ...]
    latent_scale: float


def save_djepa(
    file: Path,
    model: DJEPA,
    class_names: Sequence[str],
    *,
    tokenizer: Tokenizer | None = None,
    latent_scale: float = 1.0,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Save in half precision what sampling needs: everything but the projection of the JEPA loss.

    Args:
        notes: further header entries, such as the recipe and the licence of the data.

    Raises:
        UnwritableError: the folder cannot be written to.
    """
    tensors = {name: value for name, value in model.state_dict().items() if not name.startswith(PROJECTION)}
    if tokenizer is not None:
        tensors |= {TOKENIZER + name: value for name, value in tokenizer.state_dict().items()}
    header = dict(notes or {}) | {
        "format": FORMAT,
        "config": json.dumps(model.config.to_dict()),
        "classes": json.dumps(list(class_names)),
        "latent_scale": repr(float(latent_scale)),
    }
    half = {
        name: value.half().contiguous().cpu() for name, value in tensors.items() if value.is_floating_point()
    }
    with writing_into(file.parent, "the D-JEPA"):
        save_file(half, file, metadata=header)


def load_djepa(file: Path | str) -> LoadedDJEPA:
    """Load a D-JEPA for sampling.

    Args:
        file: written by save_djepa; or weights in the layout of the paper's public code, with diffusion denoiser
            and normalised queries and keys, saved as safetensors. That layout was taken from the code and has never
            been tried with published weights.

    Raises:
        DJEPAFileError: the file is missing, damaged or of another kind, or its tensors do not match the header.
    """
    file = Path(file)
    header, tensors = _read(file)
    if "format" not in header and is_published(tensors):
        try:
            config, tensors = from_published(tensors)
        except ValueError as error:
            raise DJEPAFileError(f"{file} {error}") from error
        names, scale = tuple(map(str, range(config.classes))), KL16_SCALE
    else:
        config, names, scale = _description(file, header)
    ours = {name: value for name, value in tensors.items() if not name.startswith((TOKENIZER, PROJECTION))}
    of_tokenizer = {
        name.removeprefix(TOKENIZER): value for name, value in tensors.items() if name.startswith(TOKENIZER)
    }
    with torch.inference_mode(False):
        with torch.device("meta"):
            model = DJEPA(config)
        del model.projection
        _fill(file, model, ours)
    tokenizer = _tokenizer_of(file, of_tokenizer) if of_tokenizer else None
    if tokenizer is not None and config.channels != CHANNELS:
        raise DJEPAFileError(
            f"{file}: a tokenizer of {CHANNELS} channels and a model of {config.channels} do not fit together"
        )
    return LoadedDJEPA(model.eval(), tokenizer, names, scale)


def load_tokenizer(file: Path | str) -> Tokenizer:
    """Load a tokenizer from its own file, in evaluation mode, float32.

    Raises:
        DJEPAFileError: the file is missing, damaged, or not a tokenizer of this kind.
    """
    _, tensors = _read(Path(file))
    return _tokenizer_of(Path(file), tensors)


def _tokenizer_of(file: Path, tensors: Mapping[str, Tensor]) -> Tokenizer:
    """A tokenizer of these tensors, in evaluation mode, float32.

    Args:
        file: they come from, for messages.

    Raises:
        DJEPAFileError: they are not a tokenizer of this kind.
    """
    # a training counter that evaluation does not use
    counter = {"standardise.num_batches_tracked": torch.zeros((), dtype=torch.float32)}
    with torch.inference_mode(False):
        with torch.device("meta"):
            tokenizer = Tokenizer()
        _fill(file, tokenizer, {**tensors, **counter})
    return tokenizer.eval()


def _description(file: Path, header: Mapping[str, str]) -> tuple[DJEPAConfig, tuple[str, ...], float]:
    """Sizes, class names and latent scale from a file's header. Raises DJEPAFileError."""
    if header.get("format") != FORMAT:
        raise DJEPAFileError(
            f"{file} is not a D-JEPA (its format is {header.get('format')!r:.80}, expected {FORMAT!r}); choose a file "
            "that research/training/djepa/train.py wrote, or weights in the layout of the paper's public code"
        )
    try:
        config = DJEPAConfig(**json.loads(header["config"]))
        names = json.loads(header["classes"])
        scale = float(header["latent_scale"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise DJEPAFileError(f"{file}: its header does not describe a D-JEPA ({error!s:.300})") from error
    if not isinstance(names, list) or not all(
        isinstance(name, str) and 0 < len(name) <= _MAX_NAME for name in names
    ):
        raise DJEPAFileError(f"{file}: the classes in its header are not a list of names")
    if len(names) != config.classes or len(set(names)) != len(names):
        raise DJEPAFileError(
            f"{file}: its header names {len(set(names))} classes, its sizes say {config.classes}"
        )
    if not 1e-3 <= scale <= 1e3:
        raise DJEPAFileError(f"{file}: latent_scale {scale} is outside 0.001 to 1000")
    return config, tuple(names), scale


def _fill(file: Path, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load tensors into a module on the meta device, in float32; raise DJEPAFileError unless they fit exactly."""
    kind = "tokenizer" if isinstance(module, Tokenizer) else "D-JEPA"
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    if missing := sorted(wanted.keys() - found.keys()):
        raise DJEPAFileError(
            f"{file} lacks {len(missing)} tensors of a {kind} of its sizes, first {missing[0]}"
        )
    if unknown := sorted(found.keys() - wanted.keys()):
        raise DJEPAFileError(
            f"{file} holds {len(unknown)} tensors that a {kind} of its sizes does not have, first {unknown[0]:.100}"
        )
    for name, shape in wanted.items():
        if found[name] != shape:
            raise DJEPAFileError(
                f"{file}: {name} has shape {found[name]}, but the sizes in its header make it {shape} in a {kind}; "
                "get a file whose header matches"
            )
    module.load_state_dict({name: value.float() for name, value in tensors.items()}, assign=True)
    module.requires_grad_(False)


def _read(file: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The header and all tensors of a file, each one checked."""
    if not file.is_file():
        raise DJEPAFileError(f"{file} does not exist; expected a .safetensors file")
    if file.suffix != ".safetensors":
        raise DJEPAFileError(f"{file} is not a .safetensors file; no other format is loaded")
    try:
        with safe_open(file, framework="pt") as content:
            names = list(content.keys())
            if len(names) > MAX_TENSORS:
                raise DJEPAFileError(f"{file} holds {len(names)} tensors, more than any D-JEPA has")
            tensors = checked_tensors(file, content, {name: name for name in names}, DJEPAFileError)
            return content.metadata() or {}, tensors
    except (SafetensorError, OSError) as error:
        raise DJEPAFileError(unreadable(file, error, "download or train it again")) from error
