"""The folders models/jepa and models/djepa: the names in the loaders' menus and the files behind them."""

import os
from collections.abc import Callable
from pathlib import Path

from ...jepa_core.checkpoint import neighbours
from ...jepa_core.hub import ENCODERS, fetch_encoder
from ..comfy.internals import folder_paths

FOLDER = "jepa"
DJEPA_FOLDER = "djepa"
# The D-JEPA that comes with the pack: its name in the menu, and its file.
DJEPA_DEMO = "emoji (comes with this pack)"
DJEPA_DEMO_FILE = Path(__file__).absolute().parents[2] / "assets" / "djepa64.safetensors"


def register_folders() -> None:
    """Make models/jepa and models/djepa known to the host, keeping folders that the user's own configuration added."""
    for name in (FOLDER, DJEPA_FOLDER):
        default = Path(folder_paths.models_dir) / name
        default.mkdir(parents=True, exist_ok=True)
        paths, _ = folder_paths.folder_names_and_paths.get(name, ([], set()))
        paths = list(dict.fromkeys([*paths, str(default)]))
        # .safetensors alone: the host's usual set of endings admits pickles
        folder_paths.folder_names_and_paths[name] = (paths, {".safetensors"})


def djepa_names() -> list[str]:
    """Names for the menu: the D-JEPA of this pack, then every .safetensors file in models/djepa."""
    return [DJEPA_DEMO, *folder_paths.get_filename_list(DJEPA_FOLDER)]


def djepa_file(name: str) -> Path:
    """Return the file of a D-JEPA named in the menu.

    Raises:
        ValueError: a name that is not in the menu, or a link that leads out of the model folders.
    """
    if name == DJEPA_DEMO:
        return DJEPA_DEMO_FILE
    if name not in djepa_names():
        raise ValueError(
            f"There is no D-JEPA {name!r:.200}; put its .safetensors file into models/{DJEPA_FOLDER}, or "
            f"choose {DJEPA_DEMO!r}."
        )
    return _inside(Path(folder_paths.get_full_path_or_raise(DJEPA_FOLDER, name)), DJEPA_FOLDER)


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
        return _inside_encoders(Path(folder_paths.get_full_path_or_raise(FOLDER, name)))
    folders = [Path(path) for path in folder_paths.get_folder_paths(FOLDER)]
    for folder in folders:
        if (folder / name / "model.safetensors").is_file():
            return _inside_encoders(folder / name / "model.safetensors")
    default = Path(folder_paths.models_dir) / FOLDER
    file = _inside_encoders(default / name / "model.safetensors")  # where it is going to be
    fetch_encoder(name, default, non_commercial=non_commercial, on_progress=on_progress)
    return file


def _inside(file: Path, folder: str, *beside: Path) -> Path:
    """Return the file if it and what is read beside it really lie in the model folders; a link may lead elsewhere.

    None of them needs to exist.
    """
    # realpath, since Path.resolve raises RuntimeError for a link that leads to itself
    folders = [os.path.realpath(path) for path in folder_paths.get_folder_paths(folder)]
    for part in (file, *beside):
        real = Path(os.path.realpath(part))
        if not any(real.is_relative_to(path) for path in folders):
            raise ValueError(
                f"{part} is a link that leads out of the model folders, to {real}; it is not read. Put the file itself "
                f"into models/{folder}, or name its folder under '{folder}' in extra_model_paths.yaml."
            )
    return file


def _inside_encoders(file: Path) -> Path:
    return _inside(file, FOLDER, *neighbours(file))
