"""The names in the encoder loader's menu, and their files in models/jepa."""

from collections.abc import Callable, Iterable
from pathlib import Path

from ...jepa_core.checkpoint import neighbours, read_config
from ...jepa_core.clip_tokenizer import tokenizer_files
from ...jepa_core.hub import (
    ENCODERS,
    TOKENIZER_FILES,
    EncoderDownloadError,
    fetch_encoder,
    fetch_tokenizer,
)
from ...jepa_core.prompt_fit import MODEL_TYPE
from ..comfy.model_folders import ENCODER_FOLDER, folder_to_write, inside, writing_to
from ..comfy.required import folder_paths


def encoder_names() -> list[str]:
    """Names for the menu: the encoders of the hub, then every other .safetensors file in models/jepa."""
    local = folder_paths.get_filename_list(ENCODER_FOLDER)
    return [*ENCODERS, *(name for name in local if Path(name).parts[0] not in ENCODERS)]


def clip_names() -> list[str]:
    """The encoders in the menu that are CLIPs, by the hub's table or by their configuration."""
    return [name for name in encoder_names() if _is_clip(name)]


def _is_clip(name: str) -> bool:
    if name in ENCODERS:
        return ENCODERS[name].model_type == MODEL_TYPE
    try:
        file = _inside_encoders(Path(folder_paths.get_full_path_or_raise(ENCODER_FOLDER, name)))
        return read_config(file).get("model_type") == MODEL_TYPE
    except (ValueError, OSError):  # a link that leads out, a damaged configuration, a file that has just gone
        return False


def encoder_facts(names: Iterable[str] = ENCODERS) -> str:
    """A line for each of these hub encoders: its name, its download size, and its licence where that restricts use."""
    lines = []
    for name in names:
        source = ENCODERS[name]
        notes = "" if source.commercial else f", {source.licence}: NON-COMMERCIAL"
        if source.gated:
            notes += f", {source.licence}: agree to it on the hub and put the files in place yourself"
        lines.append(f"{name}: {source.megabytes} MB{notes}")
    return "\n".join(lines)


def encoder_file(
    name: str, *, non_commercial: bool = False, on_progress: Callable[[int, int], None] | None = None
) -> Path:
    """Return the weights file of an encoder in the menu, downloading a hub encoder on first use.

    Args:
        non_commercial: also download weights that must not be used commercially.

    Raises:
        ValueError: a name that is not in the menu, or a link that leads out of the model folders.
        jepa_core.hub.EncoderLicenceError: missing weights that must not be used commercially.
        jepa_core.hub.EncoderDownloadError: the hub cannot be reached; says which file to put where.
        jepa_core.writing.UnwritableError: the folder cannot be written to.
    """
    if name not in encoder_names():
        raise ValueError(
            f"There is no encoder {name!r}; put its .safetensors file (and config.json) into models/{ENCODER_FOLDER}, "
            f"or choose one of {', '.join(ENCODERS)}."
        )
    if name not in ENCODERS:
        return _inside_encoders(Path(folder_paths.get_full_path_or_raise(ENCODER_FOLDER, name)))
    folders = [Path(path) for path in folder_paths.get_folder_paths(ENCODER_FOLDER)]
    for folder in folders:
        if (folder / name / "model.safetensors").is_file():
            return _inside_encoders(folder / name / "model.safetensors")
    folder = folder_to_write(ENCODER_FOLDER)
    file = _inside_encoders(folder / name / "model.safetensors")  # where it will be
    with writing_to(ENCODER_FOLDER):
        fetch_encoder(name, folder, non_commercial=non_commercial, on_progress=on_progress)
    return file


def clip_file(
    name: str, *, non_commercial: bool = False, on_progress: Callable[[int, int], None] | None = None
) -> Path:
    """As encoder_file, for a name among clip_names; downloads the tokenizer of a hub encoder too, beside the weights."""
    if name not in clip_names():
        raise ValueError(
            f"There is no CLIP {name!r}; put its folder, with model.safetensors, config.json, vocab.json and merges.txt, "
            f"into models/{ENCODER_FOLDER}, or choose one of {', '.join(filter(_is_clip, ENCODERS))}."
        )
    try:
        file = encoder_file(name, non_commercial=non_commercial, on_progress=on_progress)
    except EncoderDownloadError as error:
        raise EncoderDownloadError(f"{error}, together with {' and '.join(TOKENIZER_FILES)}") from error
    inside(file, ENCODER_FOLDER, *tokenizer_files(file.parent))
    if name in ENCODERS:
        with writing_to(ENCODER_FOLDER):
            fetch_tokenizer(name, file.parent.parent)
    return file


def _inside_encoders(file: Path) -> Path:
    return inside(file, ENCODER_FOLDER, *neighbours(file))
