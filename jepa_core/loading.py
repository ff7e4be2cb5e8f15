"""Load an encoder from safetensors, and check that its weights and configuration fit together."""

import copy
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint import Checkpoint, EncoderFileError, neighbours, read_checkpoint
from .encoder import PLAIN_ATTENTION, Encoder, checked_image_size, register_attention

# what a model of transformers raises whose parts do not fit each other
_UNFIT = (RuntimeError, ValueError, TypeError, IndexError, ZeroDivisionError)


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
    what = _described(checkpoint)
    register_attention()
    # The host may call under inference mode; the weights must be normal tensors.
    with torch.inference_mode(False):
        model = build_model(
            architecture.build_class(),
            config,
            checkpoint.tensors,
            what,
            dtype=dtype,
            attention=PLAIN_ATTENTION,
            unneeded=architecture.unneeded,
        )
        encoder = Encoder(model.to(device), image_size, checkpoint.pixels)
        # a one-patch image reveals configuration entries that do not fit each other
        check_runs(
            lambda: encoder(torch.zeros(1, 3, config.patch_size, config.patch_size, device=device)), what
        )
        return encoder


def build_model(
    model_class: Any,
    config: Any,
    tensors: Mapping[str, Tensor],
    what: str,
    *,
    dtype: torch.dtype,
    attention: str,
    unneeded: tuple[str, ...],
) -> Any:
    """A model of transformers with these weights, in evaluation mode and frozen. Call it outside inference mode.

    Args:
        what: names the file and what it is said to be, for the messages.
        unneeded: name prefixes of weights that may be missing.

    Raises:
        EncoderFileError: weights and configuration do not fit together.
    """
    # Unneeded weights are initialised randomly, which must not advance the host's random state.
    with torch.random.fork_rng(devices=[]):
        _check_count(model_class, config, tensors, what, unneeded)
        try:
            model, info = model_class.from_pretrained(
                None,
                config=copy.deepcopy(config),  # transformers may modify it
                state_dict={name: tensor.to(dtype) for name, tensor in tensors.items()},
                attn_implementation=attention,
                dtype=dtype,
                ignore_mismatched_sizes=True,  # reported below, with the file's name
                output_loading_info=True,
            )
        except RuntimeError as error:
            raise EncoderFileError(f"{what} is not complete: {error}") from error
    for problem in ("missing", "mismatched", "unexpected"):
        names = sorted(str(name) for name in info[f"{problem}_keys"])
        names = [name for name in names if not any(part in name for part in unneeded)]
        if names:
            raise EncoderFileError(f"{what} has {len(names)} {problem} tensors, first {names[0]}")
    return model.eval().requires_grad_(False)


def _check_count(
    model_class: Any, config: Any, tensors: Mapping[str, Tensor], what: str, unneeded: tuple[str, ...]
) -> None:
    """Build the model without storage and compare weight counts, before any memory is allocated."""
    try:
        with torch.device("meta"):
            model = model_class(copy.deepcopy(config))
    except _UNFIT as error:
        raise EncoderFileError(f"{what} cannot be built: {error}") from error
    parameters = model.named_parameters()
    needed = sum(weight.numel() for name, weight in parameters if not name.startswith(unneeded))
    held = sum(tensor.numel() for tensor in tensors.values())
    # a small file could ask for a huge model
    if held < needed:
        raise EncoderFileError(f"{what} needs {needed} weights and has {held}; tensors are missing")


def check_runs(run: Callable[[], Any], what: str) -> None:
    """Call `run` once. Raises EncoderFileError if it fails as a model does whose parts do not fit each other."""
    try:
        run()
    except _UNFIT as error:
        raise EncoderFileError(f"{what} does not run: {error}") from error


def _described(checkpoint: Checkpoint) -> str:
    config_file, *_ = neighbours(checkpoint.file)
    stated = (
        f" (a {checkpoint.architecture.title} encoder according to {config_file})"
        if checkpoint.stated
        else ""
    )
    return f"{checkpoint.file}{stated}"
