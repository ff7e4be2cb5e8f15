"""The picture that comes along for templates that load one."""

import os
import shutil
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from .required import folder_paths

PICTURE = Path(__file__).absolute().parents[2] / "assets" / "jepa_example.jpg"


def offer_picture() -> None:
    """Put the picture into the host's input folder, where Load Image finds it, unless it is there.

    Where that folder cannot be written the pack works without it; the templates then need a picture of the user's.
    """
    place = Path(folder_paths.get_input_directory()) / PICTURE.name
    with suppress(OSError):
        if not place.exists():
            # it appears whole or not at all, since it is never copied again
            with TemporaryDirectory(dir=place.parent, prefix=".copying-") as folder:
                os.replace(shutil.copyfile(PICTURE, Path(folder) / PICTURE.name), place)
