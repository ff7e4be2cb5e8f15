"""The folders models/jepa and models/djepa."""

import os
from pathlib import Path

from .required import folder_paths

ENCODER_FOLDER = "jepa"


DJEPA_FOLDER = "djepa"


def register_folders() -> None:
    """Make models/jepa and models/djepa known to the host, keeping folders that the user's own configuration added."""
    for name in (ENCODER_FOLDER, DJEPA_FOLDER):
        default = Path(folder_paths.models_dir) / name
        default.mkdir(parents=True, exist_ok=True)
        paths, _ = folder_paths.folder_names_and_paths.get(name, ([], set()))
        paths = list(dict.fromkeys([*paths, str(default)]))
        # .safetensors alone: the host's usual set of endings admits pickles
        folder_paths.folder_names_and_paths[name] = (paths, {".safetensors"})


def inside(file: Path, folder: str, *beside: Path) -> Path:
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
