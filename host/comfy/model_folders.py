"""The folders models/jepa, models/djepa and models/jepa_references, or those that the user configured for them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...jepa_core.writing import UnwritableError
from .required import folder_paths

ENCODER_FOLDER = "jepa"
DJEPA_FOLDER = "djepa"
REFERENCE_FOLDER = "jepa_references"
ENDING = ".safetensors"


def register_folders() -> None:
    """Register the pack's model folders with the host, after those of the user's configuration. Makes none of them."""
    for name in (ENCODER_FOLDER, DJEPA_FOLDER, REFERENCE_FOLDER):
        default = Path(folder_paths.models_dir) / name
        paths, endings = folder_paths.folder_names_and_paths.get(name, ([], set()))
        paths = list(dict.fromkeys([*paths, str(default)]))
        # whatever another pack keeps there stays in its menus
        folder_paths.folder_names_and_paths[name] = (paths, {*endings, ENDING})


def files_in_menu(name: str) -> list[str]:
    """The pack's own files of a kind, by the host's list of them. Only safetensors: other weights can be pickles."""
    return [file for file in folder_paths.get_filename_list(name) if file.lower().endswith(ENDING)]


def folder_to_write(name: str) -> Path:
    """Where new files of a kind go: the first folder that the host lists, where is_default puts a folder."""
    return Path(folder_paths.get_folder_paths(name)[0])


@contextmanager
def writing_to(name: str) -> Iterator[None]:
    """Within the block, files of a kind are written.

    Raises:
        UnwritableError: also says how to choose another folder.
    """
    try:
        yield
    except UnwritableError as error:
        raise UnwritableError(
            f"{error}, or list another folder under {name!r} in extra_model_paths.yaml, with is_default: true"
        ) from error


def inside(file: Path, folder: str, *companions: Path) -> Path:
    """Return `file` if it and its `companions` are inside the model folders, with links followed.

    None of them needs to exist.

    Raises:
        ValueError: one of them is outside.
    """
    # realpath: Path.resolve raises RuntimeError for a link to itself
    folders = [os.path.realpath(path) for path in folder_paths.get_folder_paths(folder)]
    for part in (file, *companions):
        real = Path(os.path.realpath(part))
        if not any(real.is_relative_to(path) for path in folders):
            raise ValueError(
                f"{part} is a link that leads out of the model folders, to {real}, and is not read. Put the file itself "
                f"into models/{folder}, or add its folder under '{folder}' in extra_model_paths.yaml."
            )
    return file
