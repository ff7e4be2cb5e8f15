"""The demo generator in the stock sampler, compared with an independent DDIM loop."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from types import ModuleType

import comfy.sample
import jepa_guidance.host.generators.demo as demo_model
import latent_preview
import nodes as host_nodes
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.host.hosts import newer_host

SEED, STEPS, CFG = 7, 6, 2.0
ROOT = Path(__file__).absolute().parents[3]


@pytest.fixture(scope="module")
def demo() -> tuple:
    return demo_model.load_demo_generator()


def run_stock(demo: tuple, name: str = "face", latent: dict | None = None, sampler: str = "euler") -> Tensor:
    """Run the host's KSampler node, on an Empty Latent Image of 64 x 64 unless `latent` is given."""
    if latent is None:
        (latent,) = host_nodes.EmptyLatentImage().generate(64, 64)
    positive, negative = demo_model.demo_conditioning(name), demo_model.demo_conditioning("any")
    with torch.inference_mode():
        (out,) = host_nodes.KSampler().sample(
            demo[0], SEED, STEPS, CFG, sampler, "simple", positive, negative, latent
        )
    return out["samples"].clone()


def alpha_bar() -> Tensor:
    """The schedule of research/training/emoji/train.py: betas linear in their square roots; (1000,) float64."""
    betas = torch.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0)


def ddim(
    model: torch.nn.Module, noise: Tensor, positive: Tensor, negative: Tensor, times: list[int]
) -> Tensor:
    """Variance-preserving DDIM with classifier-free guidance on the bare network, down to the clean image."""
    bars = alpha_bar().float()
    z = noise
    for index, t in enumerate(times):
        alpha, sigma = bars[t].sqrt(), (1 - bars[t]).sqrt()
        context = torch.cat([positive, negative])
        with torch.no_grad():
            v = model(z.repeat(2, 1, 1, 1), torch.full((2,), float(t)), context=context)
        v = v[1:] + CFG * (v[:1] - v[1:])
        clean, direction = alpha * z - sigma * v, sigma * z + alpha * v
        if index + 1 < len(times):
            following = bars[times[index + 1]]
            z = following.sqrt() * clean + (1 - following).sqrt() * direction
    return clean


def simple_times(steps: int) -> list[int]:
    """The timesteps of the host's "simple" schedule: every (1000 / steps)th from the noisiest."""
    return [999 - int(i * 1000 / steps) for i in range(steps)]


@newer_host  # older hosts assume that latents are an eighth of the image
def test_stock_sampler_equals_ddim(demo: tuple) -> None:
    noise = torch.randn(1, 48, 16, 16, generator=torch.Generator().manual_seed(SEED))
    positive, negative = (demo_model.demo_conditioning(name)[0][0] for name in ("face", "any"))
    # The stock sampler starts at noise * sqrt(1 + sigma^2) in its own scale, which is the noise itself in
    # variance-preserving scale.
    expected = ddim(demo[0].model.diffusion_model, noise, positive, negative, simple_times(STEPS))
    found = run_stock(demo)
    assert found.shape == (1, 48, 16, 16)
    assert (found - expected).norm() < 1e-4 * expected.norm()


def test_schedule_is_the_one_trained_with(demo: tuple) -> None:
    sigmas = demo[0].get_model_object("model_sampling").sigmas.double()
    torch.testing.assert_close(1 / (1 + sigmas**2), alpha_bar(), rtol=1e-5, atol=0)


def test_same_seed_same_image_and_class_matters(demo: tuple) -> None:
    first = run_stock(demo)
    assert torch.equal(first, run_stock(demo))
    assert not torch.equal(first, run_stock(demo, "fruit"))


@newer_host
def test_batch_holds_different_images(demo: tuple) -> None:
    (latent,) = host_nodes.EmptyLatentImage().generate(64, 64, 2)
    pair = run_stock(demo, latent=latent)
    assert pair.shape == (2, 48, 16, 16)
    assert not torch.equal(pair[0], pair[1])


@newer_host
def test_image_size_follows_the_empty_latent(demo: tuple) -> None:
    (latent,) = host_nodes.EmptyLatentImage().generate(96, 64)
    latent_image = comfy.sample.fix_empty_latent_channels(
        demo[0], latent["samples"], latent["downscale_ratio_spacial"]
    )
    assert latent_image.shape == (1, 48, 16, 24)


def test_vae_round_trip_is_exact(demo: tuple) -> None:
    _, vae = demo
    levels = torch.randint(0, 256, (2, 64, 48, 3), generator=torch.Generator().manual_seed(0))
    pixels = levels.float() / 255
    latent = vae.encode(pixels)
    assert latent.shape == (2, 48, 16, 12)
    assert latent.dtype == torch.float32
    # Up to rounding in the map to [-1, 1] and back; the folding only moves numbers.
    torch.testing.assert_close(vae.decode(latent), pixels, rtol=0, atol=1e-7)
    assert torch.equal(latent, F.pixel_unshuffle(pixels.movedim(-1, 1) * 2 - 1, 4))
    assert torch.equal((vae.decode(latent) * 255).round().long(), levels)


def test_vae_decodes_noise_into_range_and_leaves_it_alone(demo: tuple) -> None:
    latent = torch.randn(1, 48, 16, 16)
    before = latent.clone()
    pixels = demo[1].decode(latent)
    assert pixels.shape == (1, 64, 64, 3)
    assert pixels.min() == 0
    assert pixels.max() == 1
    assert torch.equal(latent, before)


def test_tiled_vae_agrees(demo: tuple) -> None:
    pixels = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        latent = demo[1].encode(pixels)
        torch.testing.assert_close(demo[1].encode_tiled(pixels, tile_x=64, tile_y=64, overlap=16), latent)
        torch.testing.assert_close(demo[1].decode_tiled(latent, tile_x=16, tile_y=16, overlap=4), pixels)


def test_preview_is_the_picture_at_quarter_size(demo: tuple) -> None:
    pixels = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    latent_format = demo[0].get_model_object("latent_format")
    previewer = latent_preview.Latent2RGBPreviewer(latent_format.latent_rgb_factors)
    preview = torch.tensor(list(previewer.decode_latent_to_preview(demo[1].encode(pixels)).getdata()))
    expected = F.avg_pool2d(pixels.movedim(-1, 1), 4)[0].movedim(0, -1).reshape(-1, 3) * 255
    assert (preview - expected).abs().max() <= 1


def test_weights_are_usable_under_autograd(demo: tuple) -> None:
    with torch.inference_mode():
        patcher, vae = demo_model.load_demo_generator()
    assert not any(p.is_inference() for p in patcher.model.parameters())
    assert not any(p.is_inference() for p in vae.first_stage_model.parameters())
    assert all(p.dtype == torch.float32 for p in patcher.model.parameters())


@pytest.mark.parametrize("name", ["any", "clock"])
def test_conditioning_is_the_class_row(name: str) -> None:
    table = load_file(demo_model.WEIGHTS)["classes.weight"].float()
    ((token, extra),) = demo_model.demo_conditioning(name)
    assert token.shape == (1, 1, 128)
    assert torch.equal(token[0, 0], table[demo_model.demo_classes().index(name)])
    assert extra == {}


def test_unknown_class_is_refused() -> None:
    with pytest.raises(ValueError, match="no class 'dragon'"):
        demo_model.demo_conditioning("dragon")


def test_classes_are_those_of_the_training_data() -> None:
    data = load_script(ROOT / "research" / "training" / "emoji" / "data.py")
    assert demo_model.demo_classes() == ["any", *data.CLASSES]


def load_script(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def header() -> dict[str, str]:
    with safe_open(demo_model.WEIGHTS, framework="pt") as content:
        return content.metadata()


def damaged(folder: Path, kind: str) -> Path:
    """A file with this kind of damage."""
    file = folder / "emoji64.safetensors"
    tensors, head = load_file(demo_model.WEIGHTS), header()
    if kind == "truncated":
        file.write_bytes(demo_model.WEIGHTS.read_bytes()[:-1000])
        return file
    if kind == "empty":
        file.write_bytes(b"")
        return file
    if kind == "no header":
        head = {}
    elif kind == "other format":
        head["format"] = "other"
    elif kind == "header without unet":
        del head["unet"]
    elif kind == "header is no json":
        head["unet"] = "{"
    elif kind == "header of another kind":
        head["unet"] = "[]"
    elif kind == "unknown option":
        head["unet"] = json.dumps({**json.loads(head["unet"]), "surprise": 1})
    elif kind == "another network":
        head["unet"] = json.dumps({**json.loads(head["unet"]), "model_channels": 64})
    elif kind == "another folding":
        head["fold"] = "2"
    elif kind == "other classes":
        head["classes"] = json.dumps(["any", "face"])
    elif kind == "missing tensor":
        del tensors["unet.out.2.weight"]
    elif kind == "no class table":
        del tensors["classes.weight"]
    elif kind == "not finite":
        tensors["unet.out.2.weight"][0, 0, 0, 0] = torch.nan
    save_file(tensors, file, metadata=head)
    return file


KINDS = (
    "truncated",
    "empty",
    "no header",
    "other format",
    "header without unet",
    "header is no json",
    "header of another kind",
    "unknown option",
    "another network",
    "another folding",
    "other classes",
    "missing tensor",
    "no class table",
    "not finite",
)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_file_is_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_model, "WEIGHTS", damaged(tmp_path, kind))
    with pytest.raises(demo_model.DemoFileError, match=r"emoji64\.safetensors"):
        demo_model.load_demo_generator()


def test_missing_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_model, "WEIGHTS", tmp_path / "emoji64.safetensors")
    with pytest.raises(demo_model.DemoFileError, match=r"emoji64\.safetensors does not exist"):
        demo_model.load_demo_generator()


def test_file_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "emoji64.safetensors"
    with open(file, "wb") as content:
        content.truncate(demo_model.MAX_BYTES + 1)
    monkeypatch.setattr(demo_model, "WEIGHTS", file)
    with pytest.raises(demo_model.DemoFileError, match="larger than"):
        demo_model.load_demo_generator()
