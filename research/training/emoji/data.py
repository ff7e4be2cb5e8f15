"""The demo generator's images: 3D emoji of Microsoft's Fluent Emoji (MIT), from two npm packages.

Seven classes whose members resemble each other, which a network that trains in under an hour on two
processor cores can learn. The skin-tone variants are left out, so that nothing here equates a skin tone
with rarity.
"""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from research.harness.npm import archive
from research.training.pictures import Pictures

PACKAGES = {
    "@lobehub/fluent-emoji-3d@1.1.0": "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    "emojibase-data@17.0.0": "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
}
LICENCE = "Microsoft Fluent Emoji, MIT licence, as packaged by @lobehub/fluent-emoji-3d 1.1.0 (MIT)"

# Class name -> Unicode subgroups (a trailing * matches any ending). Order is the class index minus one:
# index 0 is the unconditional class.
CLASSES = {
    "face": ["face-*"],
    "person": ["person", "person-gesture", "person-role", "person-fantasy"],
    "heart": ["heart"],
    "hand": ["hand*"],
    "sky": ["sky-weather"],
    "fruit": ["food-fruit", "food-vegetable"],
    "clock": ["time"],
}
CACHED_SIZE = 128  # pixels, twice what the generator makes


def _without_selectors(hexcode: str) -> str:
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f")


def _class_of(subgroup: str) -> str | None:
    path = Path(subgroup)
    return next((name for name, patterns in CLASSES.items() if any(path.match(p) for p in patterns)), None)


def load_pictures(folder: Path) -> Pictures:
    """Return every picture of the classes above, on white, in a fixed order.

    One picture in ten is held out, chosen by a hash of its file's name.

    Args:
        folder: where the two packages are kept; they are fetched into it when missing.
    """
    (images_package, images_hash), (labels_package, labels_hash) = PACKAGES.items()
    with archive(labels_package, labels_hash, folder) as opened:
        emoji = json.loads(_content(opened, "package/en/data.json"))
        subgroups = json.loads(_content(opened, "package/meta/groups.json"))["subgroups"]
    wanted = {}
    for entry in emoji:
        label = _class_of(subgroups[str(entry["subgroup"])]) if "subgroup" in entry else None
        if label is not None:
            wanted[_without_selectors(entry["hexcode"])] = list(CLASSES).index(label) + 1
    rows = []
    with archive(images_package, images_hash, folder) as opened:
        for name in sorted(opened.getnames()):
            key = _without_selectors(Path(name).stem)
            if name.endswith(".webp") and key in wanted:
                picture = Image.open(io.BytesIO(_content(opened, name))).convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
                size = (CACHED_SIZE, CACHED_SIZE)
                picture = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
                held_out = hashlib.sha256(key.encode()).digest()[0] < 26
                rows.append((np.asarray(picture), wanted[key], held_out))
    images, labels, held = zip(*rows, strict=True)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return Pictures(pixels, torch.tensor(labels), torch.tensor(held), tuple(CLASSES), LICENCE)


def _content(opened: tarfile.TarFile, name: str) -> bytes:
    file = opened.extractfile(name)
    assert file is not None, name
    return file.read()
