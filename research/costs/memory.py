"""How much memory does each differentiation of a guided step take at most?

    python dev.py run research/costs/memory.py

The host's own networks run on meta tensors, and every storage is followed from the operation that makes it to its
release. Weights, inputs and kernels' workspaces are not counted; attention is counted as the fused kernels of a GPU,
except where a case says "eager".
"""

import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Dinov2Config, Dinov2Model

from jepa_core import Encoder, RarityGradient, jacobian, load_encoder
from research.costs.gradient import ARMS
from research.costs.guides import PUBLISHED
from research.harness import program
from research.harness.checkpoint_sizes import SD15_UNET, SD15_VAE, SDXL_UNET
from research.harness.naive import naive_gradient
from research.harness.pack_api import checkpointed
from research.harness.program import Row, markdown
from research.harness.timing import GIB

# Fused attention of this head width and in half precision is flash attention's, anything else the general one's.
FLASH_HEAD_WIDTH = 256


class Peak(NamedTuple):
    """Bytes: the most alive at any time, and alive when the forward pass was over (kept for the backward)."""

    peak: int
    kept: int


class LiveStorages(TorchDispatchMode):
    """Counts the bytes of storages that operations make while the mode is on: live now, and the peak so far."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _tensors((args, kwargs)):
            # weights and inputs: they were there before
            self._known.add(tensor.untyped_storage())
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage not in self._known:
                self._known.add(storage)
                self.live += storage.nbytes()
                weakref.finalize(storage, self._release, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return result

    def _release(self, size: int) -> None:
        self.live -= size


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


@contextmanager
def fused_attention() -> Iterator[None]:
    """Make attention on meta tensors a GPU's fused kernel; torch would otherwise write the attention matrix out."""
    stock = F.scaled_dot_product_attention

    def attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not query.is_meta or args or kwargs.get("attn_mask") is not None:
            return stock(query, key, value, *args, **kwargs)
        scale = kwargs.get("scale")
        if query.dtype in (torch.float16, torch.bfloat16) and query.shape[-1] <= FLASH_HEAD_WIDTH:
            return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, scale=scale)[0]
        needs_grad = any(tensor.requires_grad for tensor in (query, key, value))
        efficient = torch.ops.aten._scaled_dot_product_efficient_attention
        return efficient(query, key, value, None, needs_grad, scale=scale)[0]

    with patch.object(F, stock.__name__, attention):
        yield


def peak_of(run: Callable[[], Any]) -> int:
    """Return the most bytes alive at any time while `run` works, beside what was there before."""
    with fused_attention(), LiveStorages() as storages:
        run()
    return storages.peak


def peak_of_backward(function: Callable[[Tensor], Tensor], x: Tensor) -> Peak:
    """Count one evaluation of function(x) and the gradient of its output with respect to x."""
    with fused_attention(), LiveStorages() as storages:
        leaf = x.detach().requires_grad_()
        output = function(leaf)
        kept = storages.live
        torch.autograd.grad(output, leaf, torch.ones_like(output))
    return Peak(storages.peak, kept)


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


def meta_kl_decoder(dtype: torch.dtype) -> Stage:
    """The host's KL decoder of SD1.5 and SDXL: latents (B, 4, h, w) -> pixels (B, 3, 8h, 8w)."""
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfy.ldm.modules.diffusionmodules import model as parts

    vae = _built(lambda: AutoencoderKL(ddconfig=SD15_VAE, embed_dim=4), dtype)
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
    with checkpointed(stage.module) if case.checkpoint else nullcontext():
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
    "balanced": ARMS["tracked, half precision (balanced)"],
    "fast": ARMS["tracked, half precision (fast)"],
}


def encoder_gradients(encoder: Encoder, x: Tensor) -> dict[str, Peak]:
    """Count a cold and a tracked gradient of x (B, 3, S, S) in each way, divided as on a graphics card.

    A card's memory is scarcer, and it takes more directions at a time.
    """
    found = {}
    for name, settings in GRADIENTS.items():
        gradient = RarityGradient(**settings)
        with patch.multiple(jacobian, _MEMORY={}, _DIRECTIONS={}, _FORWARD_MODE=set()):
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
        ("balanced preset, SDXL at 1024, float32 VAE", "KL decoder at 224, float32", "balanced"),
        ("balanced preset, SDXL at 1024, bfloat16 VAE", "KL decoder at 224, bfloat16", "balanced"),
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
