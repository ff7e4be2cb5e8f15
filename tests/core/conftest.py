"""Small random encoders and the dense matrices that the tests compare with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from jepa_core import Encoder, load_encoder
from jepa_core.architectures import ARCHITECTURES
from jepa_core.djepa import DJEPA, DJEPAConfig
from tests.conftest import HOST

SMALL: dict[str, dict[str, object]] = {
    "dinov2": {"patch_size": 14, "image_size": 28},
    "dinov2_with_registers": {"patch_size": 14, "image_size": 28},
    "dinov3_vit": {"patch_size": 8, "image_size": 16, "intermediate_size": 64, "num_register_tokens": 4},
    "clip_vision_model": {
        "patch_size": 8,
        "image_size": 16,
        "intermediate_size": 64,
        "projection_dim": 24,
        "hidden_act": "quick_gelu",
    },
    "metaclip_2_vision_model": {
        "patch_size": 8,
        "image_size": 16,
        "intermediate_size": 64,
        "projection_dim": 24,
        "hidden_act": "gelu",
    },
    "siglip_vision_model": {"patch_size": 8, "image_size": 16, "intermediate_size": 64},
    "ijepa": {"patch_size": 8, "image_size": 16, "intermediate_size": 64, "layer_norm_eps": 1e-6},
    "vjepa2": {"patch_size": 8, "crop_size": 16, "mlp_ratio": 2.0, "pred_num_hidden_layers": 1},
}


def random_model(model_type: str, **settings: object) -> PreTrainedModel:
    """Return a small model of a transformers class, randomised."""
    row = ARCHITECTURES[model_type]
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = getattr(transformers, row.config_class)(**sizes | SMALL[model_type] | settings)
    config._attn_implementation = "eager"
    return randomised(getattr(transformers, row.model_class)(config))


def randomised(model: PreTrainedModel) -> PreTrainedModel:
    """The model in evaluation mode, with weights large enough to make it far from linear."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if "norm" in name or "lambda1" in name:
                weight.copy_(1 + 0.3 * noise if name.endswith(("weight", "lambda1")) else 0.3 * noise)
            elif weight.ndim >= 4:
                weight.copy_(noise / weight[0].numel() ** 0.5)
            elif weight.ndim >= 2 and "embeddings" not in name:
                weight.copy_(1.5 * noise / weight.shape[1] ** 0.5)
            else:
                weight.copy_(0.5 * noise)
    return model.eval()


CLIP_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
# the host ships the tokenizer that all CLIPs share
CLIP_TOKENIZER = HOST / "comfy" / "sd1_tokenizer"


def save_clip(folder: Path, image_size: int = 224, patch_size: int = 32, tokenizer: bool = True) -> Path:
    """Save a small random CLIP with both towers and, unless told otherwise, its tokenizer; returns the folder."""
    config = transformers.CLIPConfig(
        text_config=CLIP_TOWER | {"hidden_act": "gelu"},
        vision_config=CLIP_TOWER | {"image_size": image_size, "patch_size": patch_size},
        projection_dim=24,
    )
    randomised(transformers.CLIPModel(config)).save_pretrained(folder)
    if tokenizer:
        for name in ("vocab.json", "merges.txt"):
            shutil.copy(CLIP_TOKENIZER / name, folder)
    return folder


def kept_for_backward(encoder: Encoder, image: Tensor) -> tuple[Tensor, int]:
    """An image's embedding, and the bytes that autograd saves for its backward pass, without the weights."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        embedding = encoder(image.clone().requires_grad_())
    weights = {weight.untyped_storage().data_ptr() for weight in encoder.parameters()}
    return embedding, sum(size for pointer, size in kept.items() if pointer not in weights)


@pytest.fixture(scope="session")
def save_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that saves a random model (model_type, **config) into a new folder."""

    def save(model_type: str = "dinov2", **settings: object) -> Path:
        folder = tmp_path_factory.mktemp(model_type)
        random_model(model_type, **settings).save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def encoder(save_model: Callable[..., Path]) -> Encoder:
    """A random encoder in float64: d = 32, images of 28 x 28."""
    return load_encoder(save_model(), dtype=torch.float64, image_size=28)


@pytest.fixture(scope="session")
def images() -> Tensor:
    """Three random preprocessed images (3, 3, 28, 28), float64."""
    return torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.fixture(scope="session")
def dense() -> Callable[[Encoder, Tensor], Tensor]:
    """Return a function (encoder, image (3, S, S)) -> J (d, n), by torch's own Jacobian."""

    def jacobian(encoder: Encoder, image: Tensor) -> Tensor:
        rows = torch.autograd.functional.jacobian(lambda x: encoder(x[None])[0], image)
        return rows.flatten(1)

    return jacobian


SMALL_DJEPA: dict[str, Any] = {
    "side": 4,
    "channels": 5,
    "classes": 3,
    "width": 24,
    "depth": 2,
    "heads": 2,
    "head_width": 20,
    "head_depth": 2,
    "buffer": 3,
}


def random_djepa(dtype: torch.dtype = torch.float32, seed: int = 0, **changes: object) -> DJEPA:
    """A small D-JEPA in evaluation mode, with weights that make every part matter."""
    model = DJEPA(DJEPAConfig(**SMALL_DJEPA | changes)).to(dtype).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator).to(dtype)
            if "norm" in name and name.endswith("weight"):
                weight.copy_(1 + 0.2 * noise)
            elif weight.ndim == 2 and "classes" not in name:
                weight.copy_(noise / weight.shape[1] ** 0.5)
            else:
                weight.copy_(0.5 * noise)
    return model
