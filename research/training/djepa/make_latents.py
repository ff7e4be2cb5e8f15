"""Encode the demo generator's images for research/training/djepa/train.py: many augmentations of each, held out apart.

    python dev.py run research/training/djepa/make_latents.py --folder WORK

Writes latents.safetensors and held_out.safetensors, which are about 60 MB, beside WORK/tokenizer.safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from safetensors.torch import save_file

from jepa_core.djepa import load_tokenizer
from research.harness import program
from research.training.emoji.data import load_pictures
from research.training.pictures import augment


def main(arguments: Sequence[str] | None = None) -> None:
    parser = program.parser(__file__, __doc__, folder=True, encoder=False)
    parser.add_argument("--augmentations", type=int, default=64, help="of each image")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    data = load_pictures(options.folder)
    seen, unseen = data.trained_on(), data.unseen()
    tokenizer = load_tokenizer(options.folder / "tokenizer.safetensors")
    generator = torch.Generator().manual_seed(options.seed)
    rounds = [tokenizer.encode(augment(seen.images, generator) * 2 - 1) for _ in range(options.augmentations)]
    header = {"classes": json.dumps(list(data.classes)), "licence": data.licence}
    for name, latents, labels in (
        ("latents", torch.cat(rounds), seen.labels.repeat(options.augmentations)),
        ("held_out", tokenizer.encode(unseen.pixels() * 2 - 1), unseen.labels),
    ):
        file = options.folder / f"{name}.safetensors"
        save_file({"latents": latents.half().contiguous(), "labels": labels - 1}, file, metadata=header)
        print(f"{file}: {tuple(latents.shape)}, mean {latents.mean():.3f}, deviation {latents.std():.3f}")


if __name__ == "__main__":
    main()
