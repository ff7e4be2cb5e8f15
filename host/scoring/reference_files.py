"""References in models/jepa_references, by the names in menus."""

import os
import re
import unicodedata
from pathlib import Path

from ...jepa_core import Reference, load_reference, save_reference
from ..comfy.model_folders import REFERENCE_FOLDER, files_in_menu, folder_to_write, inside, writing_to
from ..comfy.required import folder_paths

# Besides letters of any script with their marks, and digits: signs that no file system gives a meaning.
_SIGNS = " .-_+=@,()[]'\u2019"
_MOST, _MOST_BYTES = 100, 200  # file systems take 255 bytes or fewer, with the ending and a number
# Windows has names of its own.
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def reference_names() -> list[str]:
    """Names for the menu: the .safetensors files in models/jepa_references."""
    return files_in_menu(REFERENCE_FOLDER)


def reference_file(name: str) -> Path:
    """The file of a reference named in the menu.

    Raises:
        ValueError: a name that is not in the menu, or a link that leads out of the model folders.
    """
    if name not in reference_names():
        raise ValueError(
            f"There is no reference {name!r:.200}; save one with JEPA Save Reference, or put its .safetensors file into "
            f"models/{REFERENCE_FOLDER}."
        )
    return inside(Path(folder_paths.get_full_path_or_raise(REFERENCE_FOLDER, name)), REFERENCE_FOLDER)


def load_named(name: str) -> Reference:
    """The reference of a name in the menu.

    Raises:
        ValueError: see reference_file; jepa_core.ReferenceFileError for a damaged file.
    """
    return load_reference(reference_file(name))


def state_of_named(name: str) -> str:
    """The date and size of a reference's file; empty if it is not there."""
    path = folder_paths.get_full_path(REFERENCE_FOLDER, name) if name in reference_names() else None
    if path is None:
        return ""
    state = Path(path).stat()
    return f"{state.st_mtime_ns} {state.st_size}"


def save_named(reference: Reference, name: str, *, overwrite: bool) -> str:
    """Save a reference in the first folder of jepa_references, made if missing; returns its name in the menu.

    Args:
        name: with or without .safetensors; accents that stand apart from their letters are put together.
        overwrite: replace a file of this name; otherwise the name gets a number.

    Raises:
        ValueError: not a plain file name, or too long.
        jepa_core.writing.UnwritableError: the folder cannot be written to.
    """
    stem = _stem_of(name)
    folder = folder_to_write(REFERENCE_FOLDER)
    file, number = folder / f"{stem}.safetensors", 2
    while not overwrite and os.path.exists(file):  # Path.exists raises for a name that is too long
        file, number = folder / f"{stem}_{number}.safetensors", number + 1
    with writing_to(REFERENCE_FOLDER):
        save_reference(reference, inside(file, REFERENCE_FOLDER))
    return file.name


def _stem_of(name: str) -> str:
    """The name of a file without .safetensors. Raises ValueError for what is not one everywhere."""
    stem = re.sub(r"(?ai)\.safetensors$", "", name.strip()).strip()
    stem = unicodedata.normalize("NFC", stem)  # macOS takes accents and Hangul apart
    plain = all(one in _SIGNS or unicodedata.category(one)[0] in "LMN" for one in stem)
    if not (plain and re.match(r"\w", stem)) or _RESERVED.fullmatch(stem) or stem.endswith("."):
        raise ValueError(
            f"filename {name!r:.200} is not the name of a file: letters, digits, spaces and .-_+=@,()[]', and no folders"
        )
    if len(stem) > _MOST or len(stem.encode()) > _MOST_BYTES:
        raise ValueError(
            f"filename {name!r:.200} is too long; shorten it to {_MOST} letters, or {_MOST_BYTES // 3} of Chinese and other "
            "scripts that take more room"
        )
    return stem
