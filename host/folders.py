"""The models/jepa folder: the names in the loader's menu and the files behind them."""

import os
from collections.abc import Callable
from pathlib import Path

from ..jepa_core.checkpoint import neighbours
from ..jepa_core.hub import ENCODERS, fetch_encoder
from .internals import folder_paths

FOLDER = "jepa"


def register_folder() -> None:
    """Make models/jepa known to the host, keeping folders that the user's own configuration added."""
    default = Path(folder_paths.models_dir) / FOLDER
    default.mkdir(parents=True, exist_ok=True)
    paths, _ = folder_paths.folder_names_and_paths.get(FOLDER, ([], set()))
    paths = list(dict.fromkeys([*paths, str(default)]))
    # .safetensors alone: the host's usual set of endings admits pickles
    folder_paths.folder_names_and_paths[FOLDER] = (paths, {".safetensors"})


def encoder_names() -> list[str]:
    """Names for the menu: the encoders of the hub, then every other .safetensors file in models/jepa."""
    local = folder_paths.get_filename_list(FOLDER)
    return [*ENCODERS, *(name for name in local if Path(name).parts[0] not in ENCODERS)]


def encoder_facts() -> str:
    """A line for each encoder of the hub: its name, how much is fetched, and what its licence asks for."""
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
    """Return the weights file of an encoder named in the menu, fetching a hub encoder on first use.

    Args:
        non_commercial: fetch weights that must not be used commercially too.

    Raises:
        ValueError: a name that is not in the menu, or a link that leads out of the model folders.
        jepa_core.hub.EncoderLicenceError: weights that are not there yet and must not be used commercially.
        jepa_core.hub.EncoderDownloadError: the hub cannot be reached; says which file to put where.
    """
    if name not in encoder_names():
        raise ValueError(
            f"There is no encoder {name!r}; put its .safetensors file (and config.json) into models/{FOLDER}, "
            f"or choose one of {', '.join(ENCODERS)}."
        )
    if name not in ENCODERS:
        return _inside(Path(folder_paths.get_full_path_or_raise(FOLDER, name)))
    folders = [Path(path) for path in folder_paths.get_folder_paths(FOLDER)]
    for folder in folders:
        if (folder / name / "model.safetensors").is_file():
            return _inside(folder / name / "model.safetensors")
    default = Path(folder_paths.models_dir) / FOLDER
    file = _inside(default / name / "model.safetensors")  # where it is going to be
    fetch_encoder(name, default, non_commercial=non_commercial, on_progress=on_progress)
    return file


def _inside(file: Path) -> Path:
    """Return the file if it and what is read beside it really lie in the model folders; a link may lead elsewhere.

    None of them needs to exist.
    """
    # realpath, since Path.resolve raises RuntimeError for a link that leads to itself
    folders = [os.path.realpath(path) for path in folder_paths.get_folder_paths(FOLDER)]
    for part in (file, *neighbours(file)):
        real = Path(os.path.realpath(part))
        if not any(real.is_relative_to(folder) for folder in folders):
            raise ValueError(
                f"{part} is a link that leads out of the model folders, to {real}; it is not read. Put the file itself "
                f"into models/{FOLDER}, or name its folder under '{FOLDER}' in extra_model_paths.yaml."
            )
    return file
