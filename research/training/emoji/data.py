"""The demo generator's images: 3D emoji of Microsoft's Fluent Emoji (MIT), from two npm packages.

Seven classes whose members resemble each other, which a network that trains in under an hour on two
processor cores can learn. The skin-tone variants are left out, so that nothing here equates a skin tone
with rarity.
"""

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

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
SIZE = 64  # pixels, what the generator makes
CACHED_SIZE = 2 * SIZE  # pixels, what augmentation samples from


def _archive(package: str, sha256: str, folder: Path) -> tarfile.TarFile:
    """Open the package's archive, fetched with npm into `folder` unless it is there already."""
    npm = shutil.which("npm")
    name = package.lstrip("@").replace("/", "-").replace("@", "-") + ".tgz"
    path = folder / name
    if not path.exists():
        if npm is None:
            raise SystemExit(
                f"npm is needed to fetch {package}; install Node.js or put {name} into {folder}."
            )
        print(f"fetching {package}", flush=True)
        subprocess.run(
            [npm, "pack", package, "--pack-destination", str(folder)], check=True, capture_output=True
        )
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        path.unlink()
        raise SystemExit(f"{path.name} has sha256 {found}, expected {sha256}; it was removed, run again.")
    return tarfile.open(fileobj=io.BytesIO(content))


def _without_selectors(hexcode: str) -> str:
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f")


def _class_of(subgroup: str) -> str | None:
    path = Path(subgroup)
    return next((name for name, patterns in CLASSES.items() if any(path.match(p) for p in patterns)), None)


def load_images(folder: Path) -> tuple[torch.Tensor, torch.Tensor, list[str], torch.Tensor]:
    """Return every image of the classes above, on white, in a fixed order.

    Args:
        folder: where the two packages are kept; they are fetched into it when missing.

    Returns:
        images (N, 3, 128, 128) uint8; labels (N,) int64 in 1..len(CLASSES); names (N); held_out (N,) bool,
        one image in ten, chosen by a hash of the file name, never trained on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (images_package, images_hash), (labels_package, labels_hash) = PACKAGES.items()
    with _archive(labels_package, labels_hash, folder) as archive:
        emoji = json.load(archive.extractfile("package/en/data.json"))
        subgroups = json.load(archive.extractfile("package/meta/groups.json"))["subgroups"]
    wanted = {}
    for entry in emoji:
        if "subgroup" in entry:
            label = _class_of(subgroups[str(entry["subgroup"])])
            if label is not None:
                wanted[_without_selectors(entry["hexcode"])] = (label, entry["label"])
    rows = []
    with _archive(images_package, images_hash, folder) as archive:
        for member in sorted(archive.getmembers(), key=lambda m: m.name):
            key = _without_selectors(Path(member.name).stem)
            if not member.name.endswith(".webp") or key not in wanted:
                continue
            picture = Image.open(io.BytesIO(archive.extractfile(member).read())).convert("RGBA")
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture).convert("RGB")
            picture = picture.resize((CACHED_SIZE, CACHED_SIZE), Image.Resampling.LANCZOS)
            label, name = wanted[key]
            held_out = hashlib.sha256(key.encode()).digest()[0] < 26
            rows.append((np.asarray(picture), list(CLASSES).index(label) + 1, name, held_out))
    images, labels, names, held_out = zip(*rows, strict=True)
    return (
        torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(),
        torch.tensor(labels),
        list(names),
        torch.tensor(held_out),
    )


def to_pixels(images: torch.Tensor) -> torch.Tensor:
    """(N, 3, 128, 128) uint8 -> (N, 3, 64, 64) float32 in [0, 1], unaugmented."""
    return F.avg_pool2d(images.float() / 255, 2)


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Randomly mirror, turn (+-7 degrees), scale (0.88 to 1.06) and shift (+-5 %) each image.

    Args:
        images: (B, 3, 128, 128) uint8, on white.

    Returns:
        (B, 3, 64, 64) float32 in [0, 1], still on white.
    """
    count = images.shape[0]
    draw = torch.rand(5, count, generator=generator)
    mirror = torch.where(draw[0] < 0.5, -1.0, 1.0)
    angle = (draw[1] * 2 - 1) * 0.122
    zoom = 1 / (0.88 + 0.18 * draw[2])
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    shift = (draw[3:] * 2 - 1) * 0.1
    affine = torch.stack(
        [torch.stack([mirror * cos, -sin, shift[0]], 1), torch.stack([mirror * sin, cos, shift[1]], 1)], 1
    )
    grid = F.affine_grid(affine, [count, 3, CACHED_SIZE, CACHED_SIZE], align_corners=False)
    # Sampled as darkness, so that what lies outside the image is white.
    dark = F.grid_sample(1 - images.float() / 255, grid, mode="bilinear", align_corners=False)
    return 1 - F.avg_pool2d(dark, 2)
