"""Varied pictures to rank: photos, illustrations and renders, pinned by content.

Eighty-eight thumbnails of the host's template gallery (the kind of picture its users make), named in pictures.txt:
evenly spread over the sorted first pictures of all templates, without animations and without those whose 8 x 8 thumbnail
correlates by more than 0.85 with one before. And the eight photos that come with scikit-image.
"""

import io
import os
import platform
import sys
import zipfile
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from skimage import data
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from tools.environment.building import download, pip, setup_lock
from tools.environment.components import cache_folder
from tools.environment.pinned import Archive

ARCHIVE = Archive(
    "comfyui-workflow-templates-media-image",
    "0.3.160",
    "comfyui_workflow_templates_media_image-0.3.160-py3-none-any.whl",
    "d4a5c5541c7088f6adb1c7da41f5d7c1c14a037eda6a61cd8b4b76c251faaa93",
    90,
)
FOLDER = "comfyui_workflow_templates_media_image/templates/"
NAMES = Path(__file__).with_suffix(".txt").read_text().split()
PHOTOS = [
    "astronaut",
    "camera",
    "chelsea",
    "coffee",
    "coins",
    "hubble_deep_field",
    "immunohistochemistry",
    "rocket",
]


def wheel() -> Path:
    """The verified archive, downloaded with pip into dev.py's cache unless it is there.

    Raises:
        SetupError: the package index is out of reach, or serves another file.
    """
    cache = cache_folder(os.environ, platform.system(), Path.home())
    with setup_lock(cache / ".lock"):
        return download(ARCHIVE, cache / "downloads", partial(pip, Path(sys.executable)))


def read_picture(content: bytes) -> Tensor:
    """A picture (H, W, 3) float32 in [0, 1], transparent parts white."""
    with Image.open(io.BytesIO(content)) as picture:
        layers = picture.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")
    return pil_to_tensor(flat).movedim(0, -1).float() / 255


def gallery(archive: Path | None = None, names: Iterable[str] = NAMES) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, picture (H, W, 3) in [0, 1]) of the host's gallery."""
    with zipfile.ZipFile(archive or wheel()) as content:
        for name in names:
            yield name, read_picture(content.read(f"{FOLDER}{name}-1.webp"))


def photos() -> Iterator[tuple[str, Tensor]]:
    """Yield (name, photo (H, W, 3) in [0, 1]) of those that come with scikit-image."""
    for name in PHOTOS:
        photo = torch.from_numpy(getattr(data, name)()).float() / 255
        yield name, photo if photo.ndim == 3 else photo[..., None].repeat(1, 1, 3)
