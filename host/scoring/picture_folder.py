"""The pictures in a folder inside the host's input or output folder. Nothing outside is read."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from ...jepa_core.folders.listing import find_pictures, text_of_path
from ...jepa_core.folders.reading import UNREADABLE, read_picture
from ..comfy.required import folder_paths

INPUT, OUTPUT = "input", "output"


def root_of(place: str) -> Path:
    """The host's input or output folder, with links followed."""
    base = folder_paths.get_input_directory() if place == INPUT else folder_paths.get_output_directory()
    return Path(os.path.realpath(base))


def folder_of(place: str, subfolder: str) -> Path:
    """The path of a folder inside the host's input or output folder, with links followed.

    Raises:
        ValueError: it is not there, or outside.
    """
    root = root_of(place)
    try:
        folder = Path(os.path.realpath(root / subfolder))
    except ValueError as error:  # a character that no file name has
        raise ValueError(f"subfolder {subfolder!r:.200} is not a path") from error
    if not folder.is_relative_to(root):
        raise ValueError(
            f"subfolder {subfolder!r:.200} leads out of the {place} folder; put the pictures into {root}"
        )
    if not os.path.isdir(folder):  # Path.is_dir raises for a name that is too long
        raise ValueError(f"There is no folder {subfolder!r:.200} in the {place} folder, {root}")
    return folder


def newest_files(folder: Path, *, deep: bool = False) -> dict[str, os.stat_result]:
    """The picture files in a folder by their paths, with their states, the newest first.

    Args:
        deep: also those in folders within it; see find_pictures, which says what is left out.
    """
    states = {}
    for path in find_pictures([folder], deep=deep):
        with suppress(OSError):  # removed meanwhile
            states[path] = os.stat(path)
    return dict(sorted(states.items(), key=lambda one: (-one[1].st_mtime_ns, one[0])))


def state_of(files: Mapping[str, os.stat_result]) -> str:
    """A hash of the paths, dates and sizes of files."""
    states = [(path, state.st_mtime_ns, state.st_size) for path, state in files.items()]
    return hashlib.sha256(repr(states).encode(errors="surrogateescape")).hexdigest()


class FolderPictures:
    """The newest pictures of a folder, one at a time (H, W, 3 or 4) in [0, 1]; read anew whenever they are gone through.

    Args:
        deep: also those in folders within it.

    Attributes:
        skipped: files that could not be read, and why; known after the first time through.
    """

    def __init__(self, folder: Path, count: int, *, deep: bool = False) -> None:
        self.folder = folder
        self.count = count
        self.files = list(newest_files(folder, deep=deep))
        self.skipped: dict[str, str] = {}

    def __iter__(self) -> Iterator[Tensor]:
        """Raises ValueError if there is none."""
        given = 0
        for path in self.files:
            if given == self.count:
                return
            name = text_of_path(Path(os.path.relpath(path, self.folder)).as_posix())
            if name in self.skipped:
                continue
            try:
                picture = read_picture(Path(path))
            except UNREADABLE as error:
                self.skipped[name] = str(error) or type(error).__name__
                continue
            given += 1
            yield picture
        if not given:
            raise no_picture(self.folder, self.skipped)


def no_picture(folder: Path, skipped: Mapping[str, str]) -> ValueError:
    """The error for a folder without a picture that can be read; says which folder in it has some."""
    below = Counter(
        os.path.dirname(os.path.relpath(path, folder)) for path in newest_files(folder, deep=True)
    )
    if below and not skipped:
        name, count = below.most_common(1)[0]
        return ValueError(
            f"{folder} holds no picture itself; its folder {name} holds {count}: add its name to subfolder, or set "
            "with_subfolders"
        )
    why = f"skipped {skipped_text(skipped)}" if skipped else "make some first, or choose another folder"
    return ValueError(f"{folder} holds no picture that can be read; {why}")


def skipped_text(skipped: Mapping[str, str]) -> str:
    """Files that were skipped and why, the first ten of them."""
    lines = [f"{name} ({why:.100})" for name, why in skipped.items()]
    more = f" and {len(lines) - 10} more" if len(lines) > 10 else ""
    return ", ".join(lines[:10]) + more
