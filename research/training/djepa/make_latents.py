"""Encode the demo generator's images for research/training/djepa/train.py: many augmentations of each, held out apart.

    python dev.py run research/training/djepa/make_latents.py --folder WORK

Writes latents.safetensors and held_out.safetensors, which are about 60 MB, beside WORK/tokenizer.safetensors.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "emoji"))
from data import CLASSES, LICENCE, augment, load_images, to_pixels  # noqa: E402

from jepa_core.djepa import load_tokenizer  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="downloads and the tokenizer")
    parser.add_argument("--augmentations", type=int, default=64, help="of each image")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    images, labels, _, held_out = load_images(options.folder)
    tokenizer = load_tokenizer(options.folder / "tokenizer.safetensors")
    generator = torch.Generator().manual_seed(options.seed)
    train = images[~held_out]
    rounds = [tokenizer.encode(augment(train, generator) * 2 - 1) for _ in range(options.augmentations)]
    header = {"classes": json.dumps(list(CLASSES)), "licence": LICENCE}
    for name, latents, rows in (
        ("latents", torch.cat(rounds), labels[~held_out].repeat(options.augmentations)),
        ("held_out", tokenizer.encode(to_pixels(images[held_out]) * 2 - 1), labels[held_out]),
    ):
        file = options.folder / f"{name}.safetensors"
        save_file({"latents": latents.half().contiguous(), "labels": rows - 1}, file, metadata=header)
        print(f"{file}: {tuple(latents.shape)}, mean {latents.mean():.3f}, deviation {latents.std():.3f}")


if __name__ == "__main__":
    main()
