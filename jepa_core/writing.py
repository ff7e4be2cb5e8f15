"""Writing files where it may not be possible."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

_DENIED = "allow this program to write there"
_FIXES = {
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.EROFS: "make the disk writable",
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.ENAMETOOLONG: "use a shorter name",
    errno.ENOTDIR: "remove the file that has the name of a folder",
    errno.EEXIST: "remove the file that has the name of a folder",
}


class UnwritableError(OSError):
    """A file could not be written. The message names the folder, the reason and the fix."""


@contextmanager
def writing_into(folder: Path, what: str) -> Iterator[None]:
    """Within the block, files are written into a folder. Other errors than those of writing pass.

    Args:
        what: is written, for the message.

    Raises:
        UnwritableError: no permission, a disk that is full or can only be read, a name that is too long, or a
            file in the folder's place.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if not is_unwritable(error):
            raise
        number = _number(error)
        raise UnwritableError(
            f"cannot write {what} into {folder} ({os.strerror(number)}): {_FIXES[number]}"
        ) from error


def is_unwritable(error: Exception) -> bool:
    """Whether an error says that a file cannot be written."""
    return _number(error) in _FIXES


def _number(error: Exception) -> int:
    """The system's number of an error; safetensors has it in its text."""
    if isinstance(error, OSError):
        return error.errno or 0  # of an error that the system did not raise
    found = re.search(r"os error (\d+)", str(error))
    return int(found[1]) if found else 0
