"""How much memory does each differentiation of a guided step take at most?

    python dev.py run research/costs/memory.py

The host's own networks run on meta tensors, and every storage is followed from the operation that makes it to its
release. Weights, inputs and kernels' workspaces are not counted; attention is counted as the fused kernels of a GPU,
except where a case says "eager".
"""

import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model

from jepa_core import Encoder, RarityGradient, jacobian, load_encoder
from research.costs.gradient import ARMS
from research.costs.guides import PUBLISHED
from research.harness import program
from research.harness.checkpoint_sizes import FLUX, SD15_UNET, SD15_VAE, SDXL_UNET
from research.harness.naive import naive_gradient
from research.harness.pack_api import Peak, peak_of, peak_of_backward, saving_memory
from research.harness.program import Row, markdown
from research.harness.timing import GIB


class Stage(NamedTuple):
    """A network without data and the function of it that is differentiated."""

    module: nn.Module
    function: Callable[[Tensor], Tensor]


def _built(make: Callable[[], nn.Module], dtype: torch.dtype = torch.float32) -> Any:
    """A module whose weights have shapes only."""
    with torch.device("meta"):
        return make().to(dtype).eval().requires_grad_(False)


def meta_unet(kind: str, dtype: torch.dtype) -> Stage:
    """The host's UNet of "sd15" or "sdxl" shape: noisy latents (B, 4, h, w) -> (B, 4, h, w)."""
    from comfy.ldm.modules.attention import attention_pytorch
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from comfy.ops import disable_weight_init

    sizes = {"sd15": SD15_UNET | {"num_heads": 8}, "sdxl": SDXL_UNET | {"num_head_channels": 64}}[kind]
    unet = _built(lambda: UNetModel(**sizes, dtype=dtype, operations=disable_weight_init), dtype)

    attention = {"optimized_attention_override": lambda _, *qkv, **more: attention_pytorch(*qkv, **more)}

    def denoise(x: Tensor) -> Tensor:
        context = x.new_zeros(len(x), 77, sizes["context_dim"])
        label = x.new_zeros(len(x), sizes["adm_in_channels"]) if sizes["adm_in_channels"] else None
        return unet(x, x.new_zeros(len(x)), context=context, y=label, transformer_options=attention)

    return Stage(unet, denoise)


def meta_flux(dtype: torch.dtype) -> Stage:
    """The host's Flux: noisy latents (B, 16, h, w) -> (B, 16, h, w), with a prompt of 256 tokens."""
    from comfy.ldm.flux.model import Flux
    from comfy.ldm.modules.attention import attention_pytorch
    from comfy.ops import disable_weight_init

    flux = _built(lambda: Flux(**FLUX, dtype=dtype, operations=disable_weight_init), dtype)
    attention = {"optimized_attention_override": lambda _, *qkv, **more: attention_pytorch(*qkv, **more)}

    def denoise(x: Tensor) -> Tensor:
        context = x.new_zeros(len(x), 256, FLUX["context_in_dim"])
        pooled = x.new_zeros(len(x), FLUX["vec_in_dim"])
        time = x.new_zeros(len(x))
        return flux(x, time, context, pooled, time, transformer_options=attention)

    return Stage(flux, denoise)


def meta_kl_decoder(dtype: torch.dtype, channels: int = 4) -> Stage:
    """The host's KL decoder of SD1.5, SDXL and Flux: latents (B, channels, h, w) -> pixels (B, 3, 8h, 8w)."""
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfy.ldm.modules.diffusionmodules import model as parts

    vae = _built(
        lambda: AutoencoderKL(ddconfig=SD15_VAE | {"z_channels": channels}, embed_dim=channels), dtype
    )
    for module in vae.modules():
        if isinstance(module, parts.AttnBlock):
            # what the host takes on a GPU; on a CPU it would take slices
            module.optimized_attention = parts.pytorch_attention
    return Stage(vae.decoder, vae.decode)


def meta_taesd(dtype: torch.dtype) -> Stage:
    """The host's tiny autoencoder: latents (B, 4, h, w) -> pixels (B, 3, 8h, 8w)."""
    from comfy.taesd.taesd import TAESD

    vae = _built(TAESD, dtype)
    return Stage(vae, vae.decode)


def meta_encoder(attention: str) -> Stage:
    """A ViT-S/14 of DINOv2's architecture, with "eager" or "sdpa" attention: (B, 3, 224, 224) -> (B, 384)."""
    config = Dinov2Config(**PUBLISHED["dinov2-small"] | {"attn_implementation": attention})
    model = _built(lambda: Dinov2Model(config))
    return Stage(model, lambda x: model(pixel_values=x).last_hidden_state[:, 0])


class Case(NamedTuple):
    """A row of the table: what makes the network, the input, whether activations are checkpointed as the pack does."""

    stage: Callable[[], Stage]
    shape: tuple[int, ...]
    dtype: torch.dtype
    checkpoint: bool = False


def cases() -> dict[str, Case]:
    """Forward and backward of every stage of a guided step, and of its cheaper forms, by name."""
    half, full = torch.float16, torch.float32
    found = {}
    for kind, side in (("sdxl", 128), ("sd15", 64)):
        name = f"{kind} UNet at {8 * side}, CFG batch of 2, float16"
        found[name] = Case(partial(meta_unet, kind, half), (2, 4, side, side), half)
        found[f"{name}, checkpointed"] = found[name]._replace(checkpoint=True)
    for dtype in (full, torch.bfloat16):
        kind = str(dtype).removeprefix("torch.")
        for side in (128, 64, 28):
            name = f"KL decoder at {8 * side}, {kind}"
            found[name] = Case(partial(meta_kl_decoder, dtype), (1, 4, side, side), dtype)
            found[f"{name}, checkpointed"] = found[name]._replace(checkpoint=True)
        for side in (128, 64, 28):
            name = f"tiny autoencoder at {8 * side}, {kind}"
            found[name] = Case(partial(meta_taesd, dtype), (1, 4, side, side), dtype)
    for attention in ("eager", "sdpa"):
        for directions in (1, 4, 11, 32):
            name = f"encoder at 224, {directions} directions, {attention} attention"
            found[name] = Case(partial(meta_encoder, attention), (directions, 3, 224, 224), full)
    return found


def count(case: Case) -> Peak:
    """Count a case's forward and backward."""
    stage = case.stage()
    with saving_memory(stage.module, checkpointing=case.checkpoint):
        return peak_of_backward(stage.function, torch.empty(case.shape, dtype=case.dtype, device="meta"))


# The parent's own size counts as its child's until the child runs its program, so a small process stands between.
_RUNNER = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
size = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(code, size if sys.platform == "darwin" else size * 1024, file=sys.stderr)
"""


def peak_of_command(command: Sequence[str]) -> int:
    """Run a command to its end and return the most bytes of memory it held (POSIX only).

    Raises:
        RuntimeError: the command failed; with the end of its standard error.
    """
    words = [sys.executable, "-c", _RUNNER, *command]
    done = subprocess.run(words, stderr=subprocess.PIPE, text=True)
    lines = done.stderr.splitlines() or [""]
    if done.returncode != 0 or not lines[-1].startswith("0 "):
        tail = "\n".join(lines[-10:])
        raise RuntimeError(f"{' '.join(command)[:200]} failed:\n{tail}")
    return int(lines[-1].split()[1])


# RarityGradient's arguments; "naive" is the paper's algorithm, "none" only loads the encoder.
GRADIENTS = {
    "full precision": ARMS["tracked, full precision (custom)"],
    "subtle": ARMS["tracked, half precision (subtle)"],
    "fast": ARMS["tracked, half precision (fast)"],
}


def encoder_gradients(encoder: Encoder, x: Tensor) -> dict[str, Peak]:
    """Count a cold and a tracked gradient of x (B, 3, S, S) in each way, divided as on a graphics card.

    A card's memory is scarcer, and it takes more directions at a time.
    """
    found = {}
    for name, settings in GRADIENTS.items():
        gradient = RarityGradient(**settings)
        with patch.multiple(jacobian, _MEMORY={}, _DIRECTIONS={}, _LAYER_MEMORY={}, _FORWARD_MODE=set()):
            peak = max(peak_of(partial(gradient, encoder, x)) for _ in range(2))
        found[f"encoder's gradient, {name}, batch of {len(x)}"] = Peak(peak, 0)
    return found


def run_gradient(kind: str, encoder: Encoder) -> None:
    """What a process does whose peak memory is measured, once the encoder is loaded: one gradient of noise, or none."""
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    if kind == "naive":
        naive_gradient(encoder, x[0])
    elif kind != "none":
        RarityGradient(**GRADIENTS[kind])(encoder, x)


def processes(encoder_folder: Path) -> dict[str, float]:
    """GiB that a process holds at most, beyond one that only loads the encoder, with a processor's generous limits."""
    words = [sys.executable, "-P", __file__, "--encoder", str(encoder_folder), "--process"]
    peaks = {kind: peak_of_command([*words, kind]) for kind in ("none", "naive", *GRADIENTS)}
    return {kind: round((peak - peaks["none"]) / GIB, 3) for kind, peak in peaks.items() if kind != "none"}


def presets(found: dict[str, Peak]) -> dict[str, Peak]:
    """What a step of the cheap presets takes: the decoder's graph waits while the encoder is differentiated."""
    arms = (
        ("fast preset, SDXL at 1024", "tiny autoencoder at 224, float32", "fast"),
        ("subtle preset, SDXL at 1024, float32 VAE", "KL decoder at 224, float32", "subtle"),
        ("subtle preset, SDXL at 1024, bfloat16 VAE", "KL decoder at 224, bfloat16", "subtle"),
    )
    peaks = {}
    for name, decoder, arm in arms:
        gradient = found[f"encoder's gradient, {arm}, batch of 1"].peak
        peaks[name] = Peak(max(found[decoder].peak, found[decoder].kept + gradient), 0)
    return peaks


def table(figures: Row) -> str:
    """What is held beyond weights and inputs."""
    columns = {"forward and backward of": "{name}", "peak GiB": "{peak GiB:.2f}"}
    return markdown(columns, [{"name": name, **one} for name, one in figures["table"].items()])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = program.parser(__file__, __doc__, program.FIGURES / "memory.json")
    parser.add_argument("--process", choices=("none", "naive", *GRADIENTS), help="only compute this gradient")
    options = parser.parse_args(arguments)
    encoder = load_encoder(options.encoder)
    if options.process:
        return run_gradient(options.process, encoder)
    noise = torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    found = encoder_gradients(encoder, noise[:1]) | encoder_gradients(encoder, noise)
    found |= {name: count(case) for name, case in cases().items()}
    found |= presets(found)
    record: Row = {"settings": program.settings(parser, options)}
    record["table"] = {
        name: {"peak GiB": round(one.peak / GIB, 3), "kept GiB": round(one.kept / GIB, 3)}
        for name, one in found.items()
    }
    record["process_peak_GiB_over_loading"] = processes(options.encoder)
    program.write(options.out, record, table)


if __name__ == "__main__":
    main()
