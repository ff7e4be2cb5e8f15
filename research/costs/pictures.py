"""Varied pictures to rank: photos, illustrations and renders, pinned by content.

Eighty-eight thumbnails of the host's template gallery (the kind of picture its users make), picked by the rule
`choose`, and the eight photos that come with scikit-image.
"""

from __future__ import annotations

import io
import os
import platform
import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

import dev

ARCHIVE = dev.Archive(
    "comfyui-workflow-templates-media-image",
    "0.3.160",
    "comfyui_workflow_templates_media_image-0.3.160-py3-none-any.whl",
    "d4a5c5541c7088f6adb1c7da41f5d7c1c14a037eda6a61cd8b4b76c251faaa93",
    90,
)
FOLDER = "comfyui_workflow_templates_media_image/templates/"
COUNT = 88
ALIKE = 0.85  # correlation of two 8 x 8 thumbnails
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


def wheel(cache: Path | None = None) -> Path:
    """The verified archive, downloaded with pip into dev.py's cache unless it is there.

    Raises:
        dev.SetupError: the package index is out of reach, or serves another file.
    """
    cache = cache or dev.cache_folder(os.environ, platform.system(), Path.home())
    with dev.setup_lock(cache / ".lock") as held:
        return dev.download(
            ARCHIVE, cache / "downloads", lambda words: dev.pip(Path(sys.executable), words, held)
        )


def read_picture(content: bytes) -> Tensor | None:
    """A picture (H, W, 3) float32 in [0, 1], transparent parts white; None for an animation."""
    with Image.open(io.BytesIO(content)) as picture:
        if getattr(picture, "n_frames", 1) > 1:
            return None
        layers = picture.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")
    return pil_to_tensor(flat).movedim(0, -1).float() / 255


def choose(archive: Path, count: int = COUNT) -> list[str]:
    """Names of `count` still pictures of the archive, evenly spread over the sorted names.

    The first picture of every template, without animations, and without those that look like one before
    them (edits and workflows of one picture, empty canvases).
    """
    kept: list[str] = []
    signatures = torch.zeros(0, 192)
    with zipfile.ZipFile(archive) as content:
        for path in sorted(content.namelist()):
            if not path.startswith(FOLDER) or not path.endswith("-1.webp"):
                continue
            picture = read_picture(content.read(path))
            if picture is None:
                continue
            small = torch.nn.functional.interpolate(
                picture.movedim(-1, 0)[None], (8, 8), mode="bilinear", antialias=True
            ).flatten()
            signature = torch.nn.functional.normalize(small - small.mean(), dim=0)
            if (signatures @ signature > ALIKE).any():
                continue
            signatures = torch.cat([signatures, signature[None]])
            kept.append(path.removeprefix(FOLDER).removesuffix("-1.webp"))
    count = min(count, len(kept))
    return [kept[index * len(kept) // count] for index in range(count)]


def gallery(archive: Path | None = None, names: Iterable[str] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, picture (H, W, 3) in [0, 1]) of the host's gallery, those that `choose` picks unless named."""
    archive = archive or wheel()
    names = choose(archive) if names is None else names
    with zipfile.ZipFile(archive) as content:
        for name in names:
            picture = read_picture(content.read(f"{FOLDER}{name}-1.webp"))
            assert picture is not None, name
            yield name, picture


def photos() -> Iterator[tuple[str, Tensor]]:
    """Yield (name, photo (H, W, 3) in [0, 1]) that comes with scikit-image."""
    from skimage import data

    for name in PHOTOS:
        photo = torch.from_numpy(getattr(data, name)()).float() / 255
        yield name, photo if photo.ndim == 3 else photo[..., None].repeat(1, 1, 3)
