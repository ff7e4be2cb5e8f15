"""How well images fit a text, by CLIP."""

import os
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from .architectures import ARCHITECTURES, MIN_PATCH, Pixels, checked_entries
from .checkpoint import (
    EncoderFileError,
    config_path,
    opened,
    read_config,
    read_pixels,
    tower_config,
    weights_file,
)
from .clip_tokenizer import build_tokenizer, read_vocabulary
from .loading import build_model, check_runs
from .precision import full_precision
from .resize import resize
from .tensors import checked_tensors
from .transparency import over_white

MODEL_TYPE = "clip"
_VISION = ARCHITECTURES["clip_vision_model"]
_TEXT_ENTRIES = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("layer_norm_eps", "hidden_act"),
)
_PARTS = ("text_model.", "text_projection.", "vision_model.", "visual_projection.")
_UNNEEDED = ("logit_scale",)
# The largest CLIP sees 27 patches a side; attention grows with the fourth power.
_MAX_PATCHES = 64
# An image further out than this many times its short side is cut off anyway, and would take a huge resizing matrix.
_LONGEST = 4


class PromptFit(nn.Module):
    """A frozen CLIP that compares images with a text.

    Args:
        model: a transformers.CLIPModel in float32.
        tokenizer: its transformers.CLIPTokenizer.
        pixels: how pixels are prepared.
    """

    def __init__(self, model: Any, tokenizer: Any, pixels: Pixels) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.pixels = pixels

    @property
    def weight(self) -> Tensor:
        """One of the weights, for the model's dtype and device."""
        return next(self.model.parameters())

    def unread(self, text: str) -> str:
        """The end of a text that is too long for the model, as the tokenizer spells it; "" if all of it is read."""
        ids = self.tokenizer(text)["input_ids"]
        return self.tokenizer.decode(ids[self._positions - 1 : -1]) if len(ids) > self._positions else ""

    @torch.no_grad()
    def text_embedding(self, text: str) -> Tensor:
        """The embedding (d,) of a text, of length 1. What `unread` returns has no part in it."""
        ids = self.tokenizer(text)["input_ids"]
        if len(ids) > self._positions:
            ids = [*ids[: self._positions - 1], ids[-1]]
        tokens = torch.tensor([ids], device=self.weight.device)
        with full_precision(tokens.device):
            pooled = self.model.text_model(input_ids=tokens).pooler_output
            return nn.functional.normalize(self.model.text_projection(pooled)[0], dim=0)

    @torch.no_grad()
    def fit(self, images: Tensor, text: str) -> Tensor:
        """The cosine (B,) between the embeddings of images and of a text, in [-1, 1]; of pictures that fit, 0.2 to 0.35.

        Args:
            images: (B, H, W, 3 or 4) in [0, 1]; transparent pixels are composited over white. An image that is not
                finite gets NaN, also if what is cut out is.
        """
        pixels = self.preprocess(over_white(images.to(self.weight)))
        with full_precision(pixels.device):
            pooled = self.model.vision_model(pixel_values=pixels).pooler_output
            embeddings = nn.functional.normalize(self.model.visual_projection(pooled), dim=1)
            fits = embeddings @ self.text_embedding(text)
        return fits.where(images.isfinite().flatten(1).all(1).to(fits.device), torch.nan)

    def preprocess(self, images: Tensor) -> Tensor:
        """Prepare images (B, H, W, 3) as transformers' CLIPImageProcessor does, without its rounding to 8 bits.

        Returns:
            (B, 3, S, S): the shortest side is resized to S, the centre is cut out, the colours are normalised.

        Raises:
            ValueError: images of another shape, or none.
        """
        if images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape:
            raise ValueError(f"images must be (batch, height, width, 3), got {tuple(images.shape)}")
        side = self.model.config.vision_config.image_size
        x = _centre(images.movedim(-1, 1), _LONGEST * min(images.shape[1:3]))
        short = min(x.shape[-2:])
        height, width = (side * length // short for length in x.shape[-2:])
        # bicubic overshoots at edges, which saved images cannot: not after the rows, nor after the columns
        for size in ((x.shape[-2], width), (height, width)):
            x = resize(x, size, mode=self.pixels.interpolation).clamp(0, 1)
        x = _centre(x, side)
        return self.pixels.normalised(x)

    @property
    def _positions(self) -> int:
        """The most tokens that the model reads, with those for the beginning and the end."""
        return int(self.model.config.text_config.max_position_embeddings)


def _centre(x: Tensor, side: int) -> Tensor:
    """The centre of x (..., H, W), at most `side` high and wide."""
    top, left = (max(0, length - side) // 2 for length in x.shape[-2:])
    return x[..., top : top + side, left : left + side]


def load_prompt_fit(path: str | os.PathLike) -> PromptFit:
    """Load a CLIP with both of its towers, in the Hugging Face safetensors layout.

    Args:
        path: a folder with model.safetensors and config.json, or a .safetensors file with NAME.json or config.json next to
            it. In the same folder vocab.json and merges.txt, or tokenizer.json; a preprocessor_config.json sets how pixels
            are normalised. Half-precision checkpoints are widened to float32.

    Raises:
        EncoderFileError: a missing, damaged or unsupported file.
    """
    file = weights_file(Path(path))
    settings = read_config(file)
    if settings.get("model_type") != MODEL_TYPE:
        raise EncoderFileError(
            f"{config_path(file)} is missing or does not say model_type {MODEL_TYPE}; prompt fit needs a whole CLIP, with "
            "its config.json"
        )
    vocabulary = read_vocabulary(file.parent)
    tensors = _read_tensors(file)
    what = f"{file} (a CLIP according to {config_path(file)})"
    try:
        config = _configuration(file, settings, tensors)
    except KeyError as error:
        raise EncoderFileError(f"{what} is not complete: {error} is missing") from error
    except (ValueError, IndexError) as error:
        raise EncoderFileError(f"{what} is not supported: {error}") from error
    known = config.text_config.vocab_size
    if len(vocabulary.tokens) > known:
        raise EncoderFileError(
            f"{file.parent}: the tokenizer has {len(vocabulary.tokens)} tokens and the model {known}; take both from the "
            "same CLIP"
        )
    tokenizer = build_tokenizer(vocabulary)
    config.text_config.eos_token_id = tokenizer.eos_token_id  # older files state a wrong one
    # The host may call under inference mode; the weights must be normal tensors.
    with torch.inference_mode(False):
        model = build_model(
            transformers.CLIPModel,
            config,
            tensors,
            what,
            dtype=torch.float32,
            attention="sdpa",
            unneeded=_UNNEEDED,
        )
        loaded = PromptFit(model, tokenizer, read_pixels(file, _VISION))
        check_runs(lambda: loaded.fit(torch.zeros(1, MIN_PATCH, MIN_PATCH, 3), "a"), what)
    return loaded


def _read_tensors(file: Path) -> dict[str, Tensor]:
    with opened(file) as content:
        stored = content.keys()
        # a buffer that older versions of transformers saved
        names = [name for name in stored if not name.endswith(".position_ids")]
        for part in _PARTS:
            if not any(name.startswith(part) for name in names):
                raise EncoderFileError(
                    f"{file} has no tensors {part}*; prompt fit needs a whole CLIP in the Hugging Face layout, with its "
                    "text encoder, its image encoder and both projections"
                )
        needed = {name: name for name in names if name.startswith((*_PARTS, *_UNNEEDED))}
        return checked_tensors(file, content, needed, EncoderFileError)


def _configuration(file: Path, settings: dict, tensors: dict[str, Tensor]) -> Any:
    """The checked transformers configuration. Raises KeyError, ValueError or IndexError for tensors that do not fit."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    vision = _VISION.configuration(tower_config(file, settings, "vision_config"), shapes)
    if vision.image_size // vision.patch_size > _MAX_PATCHES:
        raise ValueError(
            f"image_size {vision.image_size} has more than {_MAX_PATCHES} patches of {vision.patch_size} a side"
        )
    told = {
        "vocab_size": shapes["text_model.embeddings.token_embedding.weight"][0],
        "max_position_embeddings": shapes["text_model.embeddings.position_embedding.weight"][0],
        "projection_dim": shapes["text_projection.weight"][0],
    }
    text = checked_entries(tower_config(file, settings, "text_config"), _TEXT_ENTRIES, told)
    return transformers.CLIPConfig(
        text_config=text, vision_config=vision.to_dict(), projection_dim=told["projection_dim"]
    )
