"""The picture files in folders. Names may be in any script, and may hold bytes that are no text."""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

SUFFIXES = frozenset((".png", ".apng", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif"))
# Folders that hold no pictures of the user, beside those whose names begin with a dot.
_TECHNICAL = frozenset(("__macosx", "__pycache__", "@eadir", "$recycle.bin", "system volume information"))
# In texts, a byte of a name that is no text, or half a character on Windows.
_ESCAPED = re.compile(r"\\u(d[89a-f][0-9a-f]{2})")


def find_pictures(paths: Iterable[str | os.PathLike], *, deep: bool = True) -> list[str]:
    """The picture files among `paths` and in the folders among them, as absolute paths, sorted, each once.

    Folders are searched to any depth. Of what lies in them only names that end like a picture's count. Hidden and technical
    folders and files, linked folders, and links to files outside the named folder are left out. A file that is named itself
    is always taken.

    Args:
        paths: folders and files; links among them are followed.
        deep: also what lies in folders within the named ones.

    Raises:
        ValueError: a path is not there, or is neither a file nor a folder; names it.
    """
    found: set[str] = set()
    for path in map(os.path.abspath, paths):
        if os.path.isdir(path):
            found.update(_inside(path, deep))
        elif os.path.isfile(path):
            found.add(path)
        else:
            what = "is neither a file nor a folder" if os.path.exists(path) else "does not exist"
            raise ValueError(f"{text_of_path(path)} {what}; name a folder of pictures, or a picture")
    return sorted(found)


def _inside(folder: str, deep: bool) -> Iterator[str]:
    """The picture files in a folder and, if `deep`, those below it. Folders that may not be read are as if empty."""
    root = Path(os.path.realpath(folder))
    # beside the path as given, the one without links
    remaining = [(folder, str(root))]
    while remaining:
        shown, real = remaining.pop()
        try:
            with os.scandir(shown) as entries:
                found = [entry for entry in entries if not is_technical(entry.name)]
        except OSError:
            continue
        for entry in found:
            path = os.path.realpath(entry.path)
            if os.path.isdir(entry.path):
                # a link, or a junction of Windows, leads elsewhere
                if deep and path == os.path.join(real, entry.name):
                    remaining.append((entry.path, path))
            elif _is_picture(entry) and Path(path).is_relative_to(root):
                yield entry.path


def _is_picture(entry: os.DirEntry[str]) -> bool:
    # unlike those of entry, this raises nothing for a link to itself
    return os.path.splitext(entry.name)[1].lower() in SUFFIXES and os.path.isfile(entry.path)


def is_technical(name: str) -> bool:
    """Whether a folder or file of this name holds no picture of the user: hidden ones, and those that programs make."""
    return name.startswith(".") or name.lower() in _TECHNICAL


def text_of_path(path: str) -> str:
    r"""A path as text that any file can hold: bytes that are no text become \udc80 to \udcff."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8")


def path_of_text(text: str) -> str:
    """The path that text_of_path wrote."""
    # a name may hold a backslash itself
    return text if os.path.exists(text) else _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text)
