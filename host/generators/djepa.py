"""D-JEPA in the host: memory management, previews, progress and interruption are the host's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ...jepa_core.djepa import (
    DJEPAConfig,
    Tokenizer,
    load_djepa,
    load_tokenizer,
    sample_tokens,
    to_latents,
    to_tokens,
)
from ...jepa_core.djepa.tokenizer import CHANNELS, STRIDE
from ..comfy.page import wants_previews
from ..comfy.required import (
    VAE,
    ModelPatcher,
    ProgressBar,
    get_torch_device,
    intermediate_device,
    interrupt_check,
    load_models_gpu,
    unet_offload_device,
)
from ..comfy.sampling import seeds_from
from ..gradient.residency import refuse_streamed
from .autoencoder import WrappedAutoencoder, small_vae

NO_CLASS = "any"
PREVIEW_SIZE = 256  # pixels
HIDDEN = 0.5  # grey level of tokens that are not drawn yet


@dataclass(frozen=True)
class HostDJEPA:
    """A D-JEPA in a patcher of the host.

    Attributes:
        name: shown to users.
        patcher: holds the jepa_core.djepa.DJEPA.
        tokenizer: decodes previews, on whatever device its VAE is at the time; None if the file has none.
        class_names: one for each class.
        latent_scale: the model's tokens are latents times this.
    """

    name: str
    patcher: ModelPatcher
    tokenizer: Tokenizer | None
    class_names: tuple[str, ...]
    latent_scale: float

    @property
    def config(self) -> DJEPAConfig:
        config: DJEPAConfig = self.patcher.model.config
        return config


def load_host_djepa(
    file: Path, name: str, tokenizer_file: Path | None = None
) -> tuple[HostDJEPA, VAE | None]:
    """Load a D-JEPA as a model that the host manages, and its autoencoder as a VAE (None if there is none).

    Args:
        tokenizer_file: of a D-JEPA whose file has no tokenizer.

    Raises:
        jepa_core.djepa.DJEPAFileError: a missing, damaged or unsupported file.
    """
    loaded = load_djepa(file)
    # A plain patcher: the host can stream only layers of its own classes.
    patcher = ModelPatcher(loaded.model, load_device=get_torch_device(), offload_device=unet_offload_device())
    tokenizer = load_tokenizer(tokenizer_file) if tokenizer_file else loaded.tokenizer
    djepa = HostDJEPA(name, patcher, tokenizer, loaded.class_names, loaded.latent_scale)
    if tokenizer is None:
        return djepa, None
    with torch.inference_mode(False):
        autoencoder = WrappedAutoencoder(tokenizer, loaded.latent_scale)
    return djepa, small_vae(autoencoder, stride=STRIDE, channels=CHANNELS)


def class_index(djepa: HostDJEPA, name: str) -> int:
    """The label of a class, by name; "any" is the unconditional one.

    Raises:
        ValueError: no such class.
    """
    wanted = name.strip().lower()
    if wanted == NO_CLASS:
        return djepa.config.classes
    for index, known in enumerate(djepa.class_names):
        if known.lower() == wanted:
            return index
    names = djepa.class_names
    shown = ", ".join(names) if len(names) <= 20 else f"{', '.join(names[:5])}, ... {names[-1]}"
    raise ValueError(
        f"class_name {name!r:.100} is not a class of {djepa.name}; it has {shown}, and {NO_CLASS}"
    )


def sample_djepa(
    djepa: HostDJEPA,
    *,
    class_name: str,
    seed: int,
    batch_size: int,
    steps: int,
    cfg: float,
    temperature: float,
    denoising_steps: int,
    time_shift: float = 1.0,
    latent: dict[str, Any] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Draw a batch of images of one class; returns a LATENT.

    Image i of a batch is the image that entry i of seeds_from(seed, batch_size) gives alone.

    Args:
        steps: at most the number of tokens to draw is taken.
        latent: a LATENT whose mask marks the tokens to draw; the others are kept. None draws all.
        say: called with a message if fewer steps are taken.

    Raises:
        ValueError: an unknown class, a latent of another size or with several masks.
    """
    config = djepa.config
    label = class_index(djepa, class_name)
    given = known = None
    if latent is not None:
        given, known = _kept(latent, djepa, batch_size)
    unknown = config.tokens if known is None else int((~known).sum())
    if steps > unknown:
        say(
            f"steps {steps} is more than the {unknown} tokens that {djepa.name} has to draw"
            f"{'' if known is None else ' inside the mask'}: {unknown} are taken"
        )
        steps = unknown
    load_models_gpu([djepa.patcher])
    refuse_streamed(djepa.patcher, "the D-JEPA")
    device = djepa.patcher.load_device
    tokens = sample_tokens(
        djepa.patcher.model,
        torch.full((batch_size,), label, device=device),
        seeds_from(seed, batch_size),
        steps=steps,
        denoising_steps=denoising_steps,
        cfg=cfg,
        temperature=temperature,
        time_shift=time_shift,
        given=given,
        known=known,
        on_step=_reporter(djepa, steps),
    )
    samples = to_latents(tokens, config.patch) / djepa.latent_scale
    if not samples.isfinite().all():
        raise ValueError(
            f"{djepa.name} drew NaN or infinite tokens at cfg {cfg} and temperature {temperature}; lower them"
        )
    return {"samples": samples.to(intermediate_device())}


def _kept(latent: dict[str, Any], djepa: HostDJEPA, batch_size: int) -> tuple[Tensor, Tensor]:
    """The tokens of a LATENT (batch_size, N, w), and which of them are kept (N,): those outside its mask."""
    config, samples = djepa.config, latent["samples"]
    expected = (config.channels, config.side, config.side)
    if samples.ndim != 4 or tuple(samples.shape[1:]) != expected:
        raise ValueError(
            f"latent_image has shape {tuple(samples.shape)}; {djepa.name} takes (batch, {', '.join(map(str, expected))})"
        )
    if len(samples) not in (1, batch_size):
        raise ValueError(
            f"latent_image holds {len(samples)} images and batch_size is {batch_size}; make them equal"
        )
    if not samples.isfinite().all():
        raise ValueError("latent_image holds NaN or infinite values")
    mask = latent.get("noise_mask")
    if mask is None:
        known = torch.zeros(config.tokens, dtype=torch.bool)
    else:
        grid = config.side // config.patch
        masks = (
            F.adaptive_max_pool2d(mask.reshape(-1, 1, *mask.shape[-2:]).float().cpu(), grid).flatten(1) > 0.5
        )
        if not (masks == masks[0]).all():
            raise ValueError(
                "latent_image has a mask for each image; D-JEPA needs one mask for the whole batch"
            )
        known = ~masks[0]
    tokens = to_tokens(samples.float() * djepa.latent_scale, config.patch)
    return tokens.expand(batch_size, -1, -1).to(djepa.patcher.load_device), known


def _reporter(djepa: HostDJEPA, steps: int) -> Callable[[int, Tensor, Tensor], None]:
    """A callback for each set of tokens: progress, a preview of the first image, the user's interruption."""
    bar = ProgressBar(steps)

    def report(done: int, tokens: Tensor, known: Tensor) -> None:
        interrupt_check()
        picture = None
        if wants_previews() and djepa.tokenizer is not None:
            picture = ("JPEG", preview(djepa, tokens[:1], known[:1]), PREVIEW_SIZE)
        bar.update_absolute(done, steps, picture)

    return report


def preview(djepa: HostDJEPA, tokens: Tensor, known: Tensor) -> Image.Image:
    """A picture of one image's tokens (1, N, w), grey where they are not known (1, N) yet. Needs a tokenizer."""
    assert djepa.tokenizer is not None
    patch = djepa.config.patch
    where = next(djepa.tokenizer.parameters()).device
    pixels = djepa.tokenizer.decode(to_latents(tokens.to(where), patch))[0].add(1).div(2).clamp(0, 1)
    grid = djepa.config.side // patch
    shown = known.to(where).reshape(1, grid, grid).repeat_interleave(patch * STRIDE, 1)
    shown = shown.repeat_interleave(patch * STRIDE, 2)
    picture = torch.where(shown, pixels, HIDDEN).movedim(0, -1)
    array = picture.mul(255).round().byte().cpu().numpy()
    edge = max(PREVIEW_SIZE, array.shape[0])
    return Image.fromarray(array).resize((edge, edge), Image.Resampling.NEAREST)
