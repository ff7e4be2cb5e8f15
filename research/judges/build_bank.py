"""Embed the real images for research/judges/measures.py: what generated images are compared with.

    python dev.py run research/judges/build_bank.py --folder WORK

Writes bank.safetensors (embeddings under the encoder that dev.py sets up and under the classifier, half
precision) and thumbnails.webp (32 x 32 pixels, lossless), in the fixed order of load_pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from tqdm import tqdm

from jepa_core import load_encoder
from research.harness import program
from research.judges.measures import CLASSIFIER_FILE, HERE, THUMBNAIL, load_classifier, tile
from research.training.emoji.data import load_pictures

BATCH = 16


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    parser = program.parser(__file__, __doc__, folder=True)
    parser.add_argument("--classifier", type=Path, default=CLASSIFIER_FILE)
    parser.add_argument("--export", type=Path, default=HERE, help="where the bank goes")
    options = parser.parse_args(arguments)
    data = load_pictures(options.folder)
    pixels = data.pixels()
    encoder, classifier = load_encoder(options.encoder), load_classifier(options.classifier)
    embeddings, features = [], []
    for part in tqdm(pixels.split(BATCH)):
        embeddings.append(encoder(encoder.preprocess(part.movedim(1, -1))))
        features.append(classifier.features(part))
    tensors = {
        "encoder": torch.cat(embeddings).half(),
        "classifier": torch.cat(features).half(),
        "labels": data.labels.to(torch.uint8),
        "held_out": data.held_out,
    }
    metadata = {"encoder": program.encoder_identity(options.encoder), "data_licence": data.licence}
    save_file(tensors, options.export / "bank.safetensors", metadata=metadata)
    small = F.adaptive_avg_pool2d(pixels, THUMBNAIL).mul(255).round().byte().movedim(1, -1).contiguous()
    sheet = Image.fromarray(tile(small.numpy()))
    sheet.save(options.export / "thumbnails.webp", lossless=True, quality=100, method=6)


if __name__ == "__main__":
    main()
