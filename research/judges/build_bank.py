"""Embed the real images for research/judges/measures.py: what generated images are compared with.

    python dev.py run research/judges/build_bank.py --folder WORK

Writes bank.safetensors (embeddings under the encoder that dev.py sets up and under the classifier, half
precision) and thumbnails.webp (32 x 32 pixels, lossless), in the fixed order of data.load_images.
"""

import argparse
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from jepa_core import load_encoder
from research.judges.measures import THUMBNAIL, encoder_identity, load_classifier, tile
from research.training.emoji.data import LICENCE, load_images, to_pixels

HERE = Path(__file__).resolve().parent
BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="downloads")
    parser.add_argument("--encoder", type=Path, default=os.environ.get("JEPA_ENCODER"), help="encoder folder")
    parser.add_argument("--classifier", type=Path, default=HERE / "classifier64.safetensors")
    parser.add_argument("--export", type=Path, default=HERE, help="where the bank goes")
    options = parser.parse_args()

    images, labels, _, held_out = load_images(options.folder)
    pixels = to_pixels(images)
    encoder, classifier = load_encoder(options.encoder), load_classifier(options.classifier)
    embeddings, features = [], []
    with torch.no_grad():
        for start in range(0, len(pixels), BATCH):
            part = pixels[start : start + BATCH]
            embeddings.append(encoder(encoder.preprocess(part.movedim(1, -1))))
            features.append(classifier.features(part))
            print(f"{min(start + BATCH, len(pixels))}/{len(pixels)}", end="\r", flush=True)
    tensors = {
        "encoder": torch.cat(embeddings).half(),
        "classifier": torch.cat(features).half(),
        "labels": labels.to(torch.uint8),
        "held_out": held_out,
    }
    metadata = {"encoder": encoder_identity(options.encoder), "data_licence": LICENCE}
    save_file(tensors, options.export / "bank.safetensors", metadata=metadata)
    small = F.adaptive_avg_pool2d(pixels, THUMBNAIL).mul(255).round().byte().movedim(1, -1).contiguous()
    Image.fromarray(tile(small.numpy())).save(
        options.export / "thumbnails.webp", lossless=True, quality=100, method=6
    )
    print(f"\nwrote {options.export / 'bank.safetensors'} and thumbnails.webp")


if __name__ == "__main__":
    main()
