"""Load an encoder from safetensors, and check that its weights and configuration fit together."""

import copy
import os
from pathlib import Path
from typing import Any

import torch

from .checkpoint import Checkpoint, EncoderFileError, neighbours, read_checkpoint
from .encoder import PLAIN_ATTENTION, Encoder, checked_image_size


def load_encoder(
    path: str | os.PathLike,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    image_size: int = 224,
) -> Encoder:
    """Load an encoder of one of ARCHITECTURES in the Hugging Face safetensors layout.

    Args:
        path: a folder with model.safetensors and config.json, or a .safetensors file with NAME.json or config.json
            next to it. DINOv2 needs no config.json if its attention heads are 64 wide. A preprocessor_config.json in
            the same folder sets how pixels are normalised. Of a model with a text tower or a classifier, only the
            image encoder is read.
        dtype: float32 or float64. Half-precision checkpoints are widened.
        image_size: S in pixels, a multiple of the patch size; it need not be the size of training.

    Returns:
        The encoder, in evaluation mode with frozen weights.

    Raises:
        EncoderFileError: a missing, damaged or unsupported file.
        ValueError: an unusable dtype or image_size.
    """
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"dtype must be float32 or float64 (half precision destroys the gradient), got {dtype}"
        )
    checkpoint = read_checkpoint(Path(path))
    architecture = checkpoint.architecture
    try:
        config = architecture.configuration(checkpoint.stated, checkpoint.shapes)
    except KeyError as error:
        raise EncoderFileError(f"{_described(checkpoint)} is not complete: {error} is missing") from error
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise EncoderFileError(f"{_described(checkpoint)} is not supported: {error}") from error
    checked_image_size(image_size, config)
    # The host may call under inference mode; the weights must be normal tensors. Unneeded ones are initialised randomly,
    # which must not advance the host's random state.
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        _check_count(checkpoint, config)
        attention = PLAIN_ATTENTION if dtype == torch.float64 else "eager"
        # a copy, since transformers may modify the configuration
        try:
            model, info = architecture.build_class().from_pretrained(
                None,
                config=copy.deepcopy(config),
                state_dict={name: tensor.to(dtype) for name, tensor in checkpoint.tensors.items()},
                attn_implementation=attention,
                dtype=dtype,
                ignore_mismatched_sizes=True,  # reported below, with the file's name
                output_loading_info=True,
            )
        except RuntimeError as error:
            raise EncoderFileError(f"{_described(checkpoint)} is not complete: {error}") from error
        for what in ("missing", "mismatched", "unexpected"):
            names = sorted(str(name) for name in info[f"{what}_keys"])
            names = [name for name in names if not any(part in name for part in architecture.unneeded)]
            if names:
                raise EncoderFileError(
                    f"{_described(checkpoint)} has {len(names)} {what} tensors, first {names[0]}"
                )
        model = model.eval().requires_grad_(False).to(device)
        encoder = Encoder(model, image_size, checkpoint.pixels)
        try:
            # a one-patch image reveals configuration entries that do not fit each other
            encoder(torch.zeros(1, 3, config.patch_size, config.patch_size, device=device))
        except (RuntimeError, ValueError, TypeError, IndexError, ZeroDivisionError) as error:
            raise EncoderFileError(f"{_described(checkpoint)} does not run: {error}") from error
        return encoder


def _check_count(checkpoint: Checkpoint, config: Any) -> None:
    """Build the model without storage and compare weight counts, before any memory is allocated."""
    architecture = checkpoint.architecture
    try:
        with torch.device("meta"):
            model = architecture.build_class()(copy.deepcopy(config))
    except (RuntimeError, ValueError, TypeError, IndexError, ZeroDivisionError) as error:
        raise EncoderFileError(f"{_described(checkpoint)} cannot be built: {error}") from error
    parameters = model.named_parameters()
    needed = sum(weight.numel() for name, weight in parameters if not name.startswith(architecture.unneeded))
    held = sum(tensor.numel() for tensor in checkpoint.tensors.values())
    # a small file could ask for a huge model
    if held < needed:
        raise EncoderFileError(
            f"{_described(checkpoint)} needs {needed} weights and has {held}; tensors are missing"
        )


def _described(checkpoint: Checkpoint) -> str:
    config_file, *_ = neighbours(checkpoint.file)
    stated = (
        f" (a {checkpoint.architecture.title} encoder according to {config_file})"
        if checkpoint.stated
        else ""
    )
    return f"{checkpoint.file}{stated}"
