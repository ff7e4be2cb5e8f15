"""The names in the encoder loader's menu, and their files in models/jepa."""

from collections.abc import Callable
from pathlib import Path

from ...jepa_core.checkpoint import neighbours
from ...jepa_core.hub import ENCODERS, fetch_encoder
from ..comfy.model_folders import ENCODER_FOLDER, inside
from ..comfy.required import folder_paths


def encoder_names() -> list[str]:
    """Names for the menu: the encoders of the hub, then every other .safetensors file in models/jepa."""
    local = folder_paths.get_filename_list(ENCODER_FOLDER)
    return [*ENCODERS, *(name for name in local if Path(name).parts[0] not in ENCODERS)]


def encoder_facts() -> str:
    """A line for each encoder of the hub: its name, its download size, and its licence where that restricts use."""
    lines = []
    for name, source in ENCODERS.items():
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
    default = Path(folder_paths.models_dir) / ENCODER_FOLDER
    file = _inside_encoders(default / name / "model.safetensors")  # where it will be
    fetch_encoder(name, default, non_commercial=non_commercial, on_progress=on_progress)
    return file


def _inside_encoders(file: Path) -> Path:
    return inside(file, ENCODER_FOLDER, *neighbours(file))
