"""D-JEPA's weight files: safetensors with the sizes in the header, read without trusting them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..tensors import MAX_TENSORS, checked_tensors
from .model import DJEPA, DJEPAConfig, DJEPASizeError
from .tokenizer import CHANNELS, Tokenizer

FORMAT = "djepa-1"
TOKENIZER = "tokenizer."
# Only training needs these tensors, so files may omit them.
PROJECTION = "projection."
KL16_SCALE = 0.2325

_MAX_NAME = 100  # characters in a class name

# From the names in the paper's public code to ours: prefixes, then parts inside a name.
_PUBLISHED = {
    "z_proj.": "context_encoder.embed.",
    "z_proj_ln.": "context_encoder.embed_norm.",
    "buffer": "context_encoder.buffer",
    "encoder_pos_embed_learned": "context_encoder.position",
    "encoder_blocks.": "context_encoder.blocks.",
    "encoder_norm.": "context_encoder.norm.",
    "decoder_embed.": "predictor.embed.",
    "mask_token": "predictor.mask_token",
    "decoder_pos_embed_learned": "predictor.position",
    "decoder_blocks.": "predictor.blocks.",
    "decoder_norm.": "predictor.norm.",
    "diffloss.net.time_embed.mlp.0.": "head.time1.",
    "diffloss.net.time_embed.mlp.2.": "head.time2.",
    "diffloss.net.cond_embed.": "head.condition.",
    "diffloss.net.input_proj.": "head.embed.",
    "diffloss.net.res_blocks.": "head.blocks.",
    "diffloss.net.final_layer.adaLN_modulation.1.": "head.modulation.",
    "diffloss.net.final_layer.linear.": "head.out.",
}
_PUBLISHED_INSIDE = {
    ".mlp.fc1.": ".fc1.",
    ".mlp.fc2.": ".fc2.",
    ".in_ln.": ".norm.",
    ".mlp.0.": ".fc1.",
    ".mlp.2.": ".fc2.",
    ".adaLN_modulation.1.": ".modulation.",
}


class DJEPAFileError(ValueError):
    """A file without a usable D-JEPA. The message names the file, what is wrong and what to do."""


@dataclass(frozen=True)
class LoadedDJEPA:
    """A D-JEPA for sampling.

    Attributes:
        model: in evaluation mode, float32, on the CPU, without gradients.
        tokenizer: its autoencoder; None if the file has none, so that another one must decode.
        class_names: one per class.
        latent_scale: the model's tokens are the autoencoder's latents times this (0.2325 for KL-16).
    """

    model: DJEPA
    tokenizer: Tokenizer | None
    class_names: tuple[str, ...]
    latent_scale: float


def save_djepa(
    file: Path,
    model: DJEPA,
    class_names: Sequence[str],
    *,
    tokenizer: Tokenizer | None = None,
    latent_scale: float = 1.0,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Save in half precision what sampling needs: everything but the projection of the JEPA loss.

    Args:
        notes: further header entries, such as the recipe and the licence of the data.
    """
    tensors = {name: value for name, value in model.state_dict().items() if not name.startswith(PROJECTION)}
    if tokenizer is not None:
        tensors |= {TOKENIZER + name: value for name, value in tokenizer.state_dict().items()}
    header = dict(notes or {}) | {
        "format": FORMAT,
        "config": json.dumps(model.config.to_dict()),
        "classes": json.dumps(list(class_names)),
        "latent_scale": repr(float(latent_scale)),
    }
    half = {
        name: value.half().contiguous().cpu() for name, value in tensors.items() if value.is_floating_point()
    }
    save_file(half, file, metadata=header)


def load_djepa(file: Path | str) -> LoadedDJEPA:
    """Load a D-JEPA for sampling.

    Args:
        file: written by save_djepa; or weights in the layout of the paper's public code, with diffusion denoiser
            and normalised queries and keys, saved as safetensors. That layout was taken from the code and has never
            been tried with published weights.

    Raises:
        DJEPAFileError: the file is missing, damaged or of another kind, or its tensors do not match the header.
    """
    file = Path(file)
    header, tensors = _read(file)
    published = "format" not in header and any("encoder_pos_embed_learned" in name for name in tensors)
    if published:
        header, tensors = _from_published(file, tensors)
    config, names, scale = _description(file, header)
    ours = {name: value for name, value in tensors.items() if not name.startswith((TOKENIZER, PROJECTION))}
    of_tokenizer = {
        name.removeprefix(TOKENIZER): value for name, value in tensors.items() if name.startswith(TOKENIZER)
    }
    with torch.inference_mode(False):
        with torch.device("meta"):
            model = DJEPA(config)
            tokenizer = Tokenizer() if of_tokenizer else None
        del model.projection
        _fill(file, model, ours)
        if tokenizer is not None:
            if config.channels != CHANNELS:
                raise DJEPAFileError(
                    f"{file}: a tokenizer of {CHANNELS} channels and a model of {config.channels} do not fit together"
                )
            _fill_tokenizer(file, tokenizer, of_tokenizer)
    return LoadedDJEPA(model.eval(), tokenizer and tokenizer.eval(), names, scale)


def load_tokenizer(file: Path | str) -> Tokenizer:
    """Load a tokenizer from its own file, in evaluation mode, float32.

    Raises:
        DJEPAFileError: the file is missing, damaged, or not a tokenizer of this kind.
    """
    file = Path(file)
    _, tensors = _read(file)
    with torch.inference_mode(False):
        with torch.device("meta"):
            tokenizer = Tokenizer()
        _fill_tokenizer(file, tokenizer, tensors)
    return tokenizer.eval()


def _fill_tokenizer(file: Path, tokenizer: Tokenizer, tensors: Mapping[str, Tensor]) -> None:
    # a training counter that evaluation does not use
    counter = "standardise.num_batches_tracked"
    _fill(file, tokenizer, {**tensors, counter: torch.zeros((), dtype=torch.float32)})


def _description(file: Path, header: Mapping[str, str]) -> tuple[DJEPAConfig, tuple[str, ...], float]:
    """Sizes, class names and latent scale from a file's header. Raises DJEPAFileError."""
    if header.get("format") != FORMAT:
        raise DJEPAFileError(
            f"{file} is not a D-JEPA (its format is {header.get('format')!r:.80}, expected {FORMAT!r}); choose a file "
            "that research/training/djepa/train.py wrote, or weights in the layout of the paper's public code"
        )
    try:
        config = DJEPAConfig(**json.loads(header["config"]))
        names = json.loads(header["classes"])
        scale = float(header["latent_scale"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise DJEPAFileError(f"{file}: its header does not describe a D-JEPA ({error!s:.300})") from error
    if not isinstance(names, list) or not all(
        isinstance(name, str) and 0 < len(name) <= _MAX_NAME for name in names
    ):
        raise DJEPAFileError(f"{file}: the classes in its header are not a list of names")
    if len(names) != config.classes or len(set(names)) != len(names):
        raise DJEPAFileError(
            f"{file}: its header names {len(set(names))} classes, its sizes say {config.classes}"
        )
    if not 1e-3 <= scale <= 1e3:
        raise DJEPAFileError(f"{file}: latent_scale {scale} is outside 0.001 to 1000")
    return config, tuple(names), scale


def _fill(file: Path, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load tensors into a module on the meta device, in float32; raise DJEPAFileError unless they fit exactly."""
    kind = "tokenizer" if isinstance(module, Tokenizer) else "D-JEPA"
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    if missing := sorted(wanted.keys() - found.keys()):
        raise DJEPAFileError(
            f"{file} lacks {len(missing)} tensors of a {kind} of its sizes, first {missing[0]}"
        )
    if unknown := sorted(found.keys() - wanted.keys()):
        raise DJEPAFileError(
            f"{file} holds {len(unknown)} tensors that a {kind} of its sizes does not have, first {unknown[0]:.100}"
        )
    for name, shape in wanted.items():
        if found[name] != shape:
            raise DJEPAFileError(
                f"{file}: {name} has shape {found[name]}, but the sizes in its header make it {shape} in a {kind}; "
                "get a file whose header matches"
            )
    module.load_state_dict({name: value.float() for name, value in tensors.items()}, assign=True)
    module.requires_grad_(False)


def _read(file: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The header and all tensors of a file, each one checked."""
    if not file.is_file():
        raise DJEPAFileError(f"{file} does not exist; expected a .safetensors file")
    if file.suffix != ".safetensors":
        raise DJEPAFileError(f"{file} is not a .safetensors file; no other format is loaded")
    try:
        with safe_open(file, framework="pt") as content:
            names = list(content.keys())
            if len(names) > MAX_TENSORS:
                raise DJEPAFileError(f"{file} holds {len(names)} tensors, more than any D-JEPA has")
            tensors = checked_tensors(file, content, {name: name for name in names}, DJEPAFileError)
            return content.metadata() or {}, tensors
    except (SafetensorError, OSError) as error:
        raise DJEPAFileError(
            f"{file} is damaged or not a safetensors file ({error}); download or train it again"
        ) from error


def _from_published(file: Path, tensors: dict[str, Tensor]) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header and tensors of weights in the layout of the paper's public code, renamed to this project's names.

    The exponential moving average, `model_ema.`, is preferred to `model.`. Raises DJEPAFileError.
    """
    for prefix in ("model_ema.", "model."):
        if any(name.startswith(prefix) for name in tensors):
            tensors = {
                name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)
            }
            break
    renamed: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if name.startswith("jepaloss.") or name in ("class_emb.weight", "fake_latent"):
            continue
        begin = next((part for part in _PUBLISHED if name.startswith(part)), None)
        if begin is None:
            raise DJEPAFileError(
                f"{file} holds {name:.100}, which is not in the layout of the paper's public code"
            )
        ours = _PUBLISHED[begin] + name.removeprefix(begin)
        for there, here in _PUBLISHED_INSIDE.items():
            ours = ours.replace(there, here)
        renamed[ours] = value
    try:
        classes = tensors["class_emb.weight"]
        renamed["context_encoder.classes.weight"] = torch.cat(
            [classes, tensors["fake_latent"].reshape(1, -1)]
        )
        config = _published_sizes(renamed, len(classes))
    except (KeyError, IndexError, RuntimeError, ZeroDivisionError, DJEPASizeError) as error:
        raise DJEPAFileError(
            f"{file} has the layout of the paper's public code, but its tensors do not form a model ({error!s:.200}); "
            "weights trained without normalised queries and keys, or with patches, are not supported"
        ) from error
    header = {
        "format": FORMAT,
        "config": json.dumps(config.to_dict()),
        "classes": json.dumps([str(label) for label in range(config.classes)]),
        "latent_scale": str(KL16_SCALE),
    }
    return header, renamed


def _published_sizes(tensors: Mapping[str, Tensor], classes: int) -> DJEPAConfig:
    """The sizes of a model, read from tensors of the public layout under this project's names."""

    def count(blocks: str) -> int:
        pattern = re.compile(re.escape(blocks) + r"(\d{1,3})\.")
        return len({found[1] for name in tensors if (found := pattern.match(name))})

    width, channels = tensors["context_encoder.embed.weight"].shape
    if len(tensors["head.out.bias"]) != 2 * channels:
        raise DJEPASizeError("its denoiser is not diffusion; flow matching is not supported in this layout")
    return DJEPAConfig(
        side=round(tensors["context_encoder.position"].shape[1] ** 0.5),
        channels=channels,
        classes=classes,
        width=width,
        depth=count("context_encoder.blocks."),
        heads=width // len(tensors["context_encoder.blocks.0.attn.q_norm.weight"]),
        head_width=len(tensors["head.embed.bias"]),
        head_depth=count("head.blocks."),
        buffer=tensors["context_encoder.buffer"].shape[1],
    )
