"""Networks of published sizes with random weights, of the host's own classes: speed and memory do not depend on weights."""

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from research.harness.checkpoint_sizes import SD15_UNET, SD15_VAE, SDXL_UNET
from research.harness.pack_api import guided
from research.harness.program import Row
from research.harness.timing import Stages

# Of a sampling of twenty steps, the first that is run; half of the noise is gone by then.
TOTAL_STEPS, FIRST_STEP = 20, 8
CFG = 7.5


class Size(NamedTuple):
    """A denoiser: the host's configuration class and latent format, what its model detection reads, a side in pixels."""

    config: str
    unet: Row
    pixels: int
    pooled: int | None = None


SD15 = Size("SD15", SD15_UNET, 512)
SDXL = Size("SDXL", SDXL_UNET, 1024, pooled=1280)


def randomise(module: nn.Module, seed: int) -> None:
    """Give every weight a random value that keeps activations of ordinary size; norms become the identity."""
    generator = torch.Generator(next(module.parameters()).device).manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, weight[0].numel() ** -0.5, generator=generator)
            else:
                weight.fill_(1.0 if name.endswith("weight") else 0.0)


def random_model(size: Size, dtype: torch.dtype | None = None) -> Any:
    """A MODEL made as a loader makes it, in this precision, or the one that the host chooses for the device."""
    import comfy.model_management as management
    import comfy.model_patcher
    import comfy.supported_models

    device = management.get_torch_device()
    with torch.inference_mode():
        config = getattr(comfy.supported_models, size.config)(size.unet)
        supported = config.supported_inference_dtypes
        dtype = dtype or management.unet_dtype(device, supported_dtypes=supported)
        config.set_inference_dtype(dtype, management.unet_manual_cast(dtype, device, supported))
        model = config.get_model({}, device=device)
        randomise(model.diffusion_model, seed=1)
    return comfy.model_patcher.ModelPatcher(model, device, management.unet_offload_device())


def kl_vae(dtype: torch.dtype | None = None) -> Any:
    """The host's VAE with the KL autoencoder of Stable Diffusion 1.5's and SDXL's shape; `dtype` as in random_model."""
    import comfy.sd

    with torch.inference_mode():
        config = {"params": {"ddconfig": SD15_VAE, "embed_dim": 4}}
        # the host warns of every weight that no file brought
        before, logging.root.level = logging.root.level, logging.ERROR
        vae = comfy.sd.VAE(sd={}, config=config, dtype=dtype)
        logging.root.level = before
        randomise(vae.first_stage_model, seed=2)
    return vae


@contextmanager
def tiny_autoencoder(latent_format: str = "SD15") -> Iterator[None]:
    """Within the block the host's folder of tiny autoencoders holds one for these latents."""
    import comfy.latent_formats
    import folder_paths
    from comfy.taesd.taesd import TAESD

    decoder = TAESD().taesd_decoder
    randomise(decoder, seed=3)
    name = f"{getattr(comfy.latent_formats, latent_format)().taesd_decoder_name}.safetensors"
    with tempfile.TemporaryDirectory() as folder:
        save_file(decoder.state_dict(), Path(folder) / name)
        known = folder_paths.folder_names_and_paths
        with (
            patch.dict(known, {"vae_approx": ([folder], {".safetensors"})}),
            patch.dict(folder_paths.filename_list_cache),
        ):
            folder_paths.filename_list_cache.pop("vae_approx", None)
            yield


@dataclass(frozen=True)
class Networks:
    """Everything that a sampling needs. encoder is a HostEncoder."""

    model: Any
    vae: Any
    encoder: Any
    positive: list
    negative: list

    def guided(self, inputs: Row, gradient: Callable | None = None, **others: Any) -> Any:
        """The MODEL as the node guides it; others: of research.harness.pack_api.guided."""
        return guided(self.model, self.vae, self.encoder, inputs, gradient=gradient, **others)

    @torch.inference_mode()
    def sample(self, model: Any, steps: int, pixels: int, stages: Stages) -> Tensor:
        """Run the middle `steps` of twenty Euler steps, and report them to `stages`; returns the latent."""
        import comfy.sample

        latent = torch.zeros(1, 4, pixels // 8, pixels // 8)
        how = (TOTAL_STEPS, CFG, "euler", "normal", self.positive, self.negative, latent)
        middle = {"start_step": FIRST_STEP, "last_step": FIRST_STEP + steps}
        report: Row = {"callback": lambda *_: stages.finish_step(), "disable_pbar": True, "seed": 0}
        return comfy.sample.sample(model, comfy.sample.prepare_noise(latent, 0), *how, **middle, **report)


def random_networks(size: Size, encoder: Any, dtype: torch.dtype | None = None) -> Networks:
    """A denoiser of this size, its VAE and its conditioning, all random, beside an encoder; `dtype` as in random_model."""
    import comfy.utils

    comfy.utils.PROGRESS_BAR_ENABLED = False
    generator = torch.Generator().manual_seed(4)
    texts = torch.randn(2, 1, 77, size.unet["context_dim"], generator=generator)
    pooled = torch.randn(2, 1, size.pooled or 1, generator=generator)
    positive, negative = (
        [[text, {"pooled_output": one} if size.pooled else {}]]
        for text, one in zip(texts, pooled, strict=True)
    )
    return Networks(random_model(size, dtype), kl_vae(dtype), encoder, positive, negative)
