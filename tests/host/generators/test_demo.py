"""The demo generator in the stock sampler, compared with an independent loop over the bare network."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

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

from research.judges.classifier import load_classifier
from research.world import labels
from research.world.classes import attribution
from tests.host.hosts import newer_host

SEED, STEPS, CFG = 7, 6, 2.0


@pytest.fixture(scope="module")
def demo() -> tuple:
    return demo_model.load_demo_generator()


def run_stock(demo: tuple, name: str = "robot", latent: dict | None = None, sampler: str = "euler") -> Tensor:
    """Run the host's KSampler node, on an Empty Latent Image of 128 x 128 unless `latent` is given."""
    if latent is None:
        (latent,) = host_nodes.EmptyLatentImage().generate(128, 128)
    positive, negative = demo_model.demo_conditioning(name), demo_model.demo_conditioning("any")
    with torch.inference_mode():
        (out,) = host_nodes.KSampler().sample(
            demo[0], SEED, STEPS, CFG, sampler, "simple", positive, negative, latent
        )
    return out["samples"].clone()


def guided_prediction(
    model: torch.nn.Module, z: Tensor, time: float, positive: Tensor, negative: Tensor
) -> Tensor:
    """What the bare network predicts, with classifier-free guidance."""
    context = torch.cat([positive, negative])
    with torch.no_grad():
        v = model(z.repeat(2, 1, 1, 1), torch.full((2,), time), context=context)
    return v[1:] + CFG * (v[:1] - v[1:])


def flow(model: torch.nn.Module, noise: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Euler's steps along the straight path from noise (share 1) to picture (share 0), the shares evenly spaced."""
    shares = [1 - int(i * 1000 / STEPS) / 1000 for i in range(STEPS)] + [0.0]
    z = noise
    for share, following in itertools.pairwise(shares):
        z = z + (following - share) * guided_prediction(model, z, 1000 * share, positive, negative)
    return z


def ddim(model: torch.nn.Module, noise: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Variance-preserving DDIM from the noisiest of 1000 times, evenly spaced, down to the clean picture.

    The schedule is research/training/generator/train.py's: betas linear in their square roots.
    """
    betas = torch.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000, dtype=torch.float64) ** 2
    bars = torch.cumprod(1 - betas, 0).float()
    times = [999 - int(i * 1000 / STEPS) for i in range(STEPS)]
    z = noise
    for index, t in enumerate(times):
        alpha, sigma = bars[t].sqrt(), (1 - bars[t]).sqrt()
        v = guided_prediction(model, z, float(t), positive, negative)
        clean, direction = alpha * z - sigma * v, sigma * z + alpha * v
        if index + 1 < len(times):
            following = bars[times[index + 1]]
            z = following.sqrt() * clean + (1 - following).sqrt() * direction
    return clean


@newer_host  # an older host scales the noise of an empty latent otherwise
def test_stock_sampler_equals_a_plain_loop(demo: tuple) -> None:
    noise = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(SEED))
    ends = (demo_model.demo_conditioning(name)[0][0] for name in ("robot", "any"))
    loop = {"v": ddim, "flow": flow}[header()["prediction"]]
    expected = loop(demo[0].model.diffusion_model, noise, *ends)
    found = run_stock(demo)
    assert found.shape == (1, 16, 16, 16)
    assert (found - expected).norm() < 1e-4 * expected.norm()


def test_same_seed_same_image_and_class_matters(demo: tuple) -> None:
    first = run_stock(demo)
    assert torch.equal(first, run_stock(demo))
    assert not torch.equal(first, run_stock(demo, "emoji"))


def test_batch_holds_different_images(demo: tuple) -> None:
    (latent,) = host_nodes.EmptyLatentImage().generate(128, 128, 2)
    pair = run_stock(demo, latent=latent)
    assert pair.shape == (2, 16, 16, 16)
    assert not torch.equal(pair[0], pair[1])


def test_image_size_follows_the_empty_latent(demo: tuple) -> None:
    (latent,) = host_nodes.EmptyLatentImage().generate(192, 128)
    latent_image = comfy.sample.fix_empty_latent_channels(demo[0], latent["samples"])
    assert latent_image.shape == (1, 16, 16, 24)


def test_what_it_draws_is_what_was_asked_for(demo: tuple) -> None:
    """As a classifier says that was trained on the same world, and has seen nothing of this generator."""
    classifier = load_classifier()
    for number, name in enumerate(demo_model.CLASSES[1:], 1):
        (latent,) = host_nodes.EmptyLatentImage().generate(128, 128, 8)
        pixels = demo[1].decode(run_stock(demo, name, latent)).movedim(-1, 1)
        with torch.no_grad():
            named = classifier.probabilities(classifier.features(pixels)).argmax(1) + 1
        assert (named == number).sum() >= 7, name


def real_pictures(count: int = 6) -> Tensor:
    """Pictures like those that it was trained on: its own, decoded; (count, 128, 128, 3)."""
    patcher, vae = demo_model.load_demo_generator()
    (latent,) = host_nodes.EmptyLatentImage().generate(128, 128, count)
    return vae.decode(run_stock((patcher, vae), "bust", latent))


def test_vae_round_trip_is_close(demo: tuple) -> None:
    pixels = real_pictures()
    latent = demo[1].encode(pixels)
    assert latent.shape == (6, 16, 16, 16)
    assert latent.dtype == torch.float32
    assert (demo[1].decode(latent) - pixels).square().mean() < 1e-3  # 30 dB


def test_vae_decodes_noise_into_range_and_leaves_it_alone(demo: tuple) -> None:
    latent = 3 * torch.randn(1, 16, 16, 16)
    before = latent.clone()
    pixels = demo[1].decode(latent)
    assert pixels.shape == (1, 128, 128, 3)
    assert pixels.min() >= 0
    assert pixels.max() <= 1
    assert torch.equal(latent, before)


def test_tiled_vae_is_close(demo: tuple) -> None:
    pixels = real_pictures(1)
    with torch.inference_mode():
        latent = demo[1].encode(pixels)
        plain = demo[1].decode(latent)
        tiled = demo[1].decode_tiled(latent, tile_x=12, tile_y=12, overlap=4)
    assert tiled.shape == plain.shape
    assert (tiled - plain).abs().mean() < 0.05  # group normalisation sees other pixels in a tile


def test_preview_resembles_the_picture(demo: tuple) -> None:
    pixels = real_pictures(1)
    latent_format = demo[0].get_model_object("latent_format")
    factors = latent_format.latent_rgb_factors, latent_format.latent_rgb_factors_bias
    shown = latent_preview.Latent2RGBPreviewer(*factors).decode_latent_to_preview(demo[1].encode(pixels))
    preview = torch.tensor(list(shown.getdata())).float()
    expected = F.avg_pool2d(pixels.movedim(-1, 1), 8)[0].movedim(0, -1).reshape(-1, 3) * 255
    assert torch.corrcoef(torch.stack([preview.flatten(), expected.flatten()]))[0, 1] > 0.8
    assert (preview.mean(0) - expected.mean(0)).abs().max() < 40


def test_weights_are_usable_under_autograd(demo: tuple) -> None:
    with torch.inference_mode():
        patcher, vae = demo_model.load_demo_generator()
    assert not any(p.is_inference() for p in patcher.model.parameters())
    assert not any(p.is_inference() for p in vae.first_stage_model.parameters())
    assert all(p.dtype == torch.float32 for p in patcher.model.parameters())


@pytest.mark.parametrize("name", ["any", "emoji"])
def test_conditioning_is_the_class_row(name: str) -> None:
    table = load_file(demo_model.WEIGHTS)["classes.weight"].float()
    ((token, extra),) = demo_model.demo_conditioning(name)
    assert token.shape == (1, 1, 128)
    assert torch.equal(token[0, 0], table[demo_model.demo_classes().index(name)])
    assert extra == {}


def test_unknown_class_is_refused() -> None:
    with pytest.raises(ValueError, match="no class 'dragon'"):
        demo_model.demo_conditioning("dragon")


def test_classes_are_those_of_the_world() -> None:
    assert demo_model.demo_classes() == ["any", *labels.CLASSES]


def test_the_file_names_every_designer() -> None:
    assert header()["data_licence"] == attribution()


def header() -> dict[str, str]:
    with safe_open(demo_model.WEIGHTS, framework="pt") as content:
        return content.metadata()


def damaged(folder: Path, kind: str) -> Path:
    """A file with this kind of damage."""
    file = folder / "demo128.safetensors"
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
    elif kind == "another prediction":
        head["prediction"] = "noise"
    elif kind == "preview of other latents":
        head["preview"] = json.dumps([[0.0, 0.0, 0.0]] * 5)
    elif kind == "preview of no numbers":
        head["preview"] = json.dumps([["a", "b", "c"]] * 17)
    elif kind == "classes of another kind":
        head["classes"] = "5"
    elif kind == "no heads":
        head["unet"] = json.dumps({**json.loads(head["unet"]), "num_head_channels": 0})
    elif kind == "weights of another type":
        tensors["unet.out.2.weight"] = tensors["unet.out.2.weight"].to(torch.float8_e4m3fn)
    elif kind == "other classes":
        head["classes"] = json.dumps(["any", "robot"])
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
    "another prediction",
    "preview of other latents",
    "preview of no numbers",
    "classes of another kind",
    "no heads",
    "weights of another type",
    "other classes",
    "missing tensor",
    "no class table",
    "not finite",
)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_file_is_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_model, "WEIGHTS", damaged(tmp_path, kind))
    with pytest.raises(demo_model.DemoFileError, match=r"demo128\.safetensors"):
        demo_model.load_demo_generator()


@pytest.mark.parametrize("name", ["WEIGHTS", "TOKENIZER"])
def test_a_pack_that_was_cloned_without_its_large_files_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    file = tmp_path / "some.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\n")
    monkeypatch.setattr(demo_model, name, file)
    with pytest.raises(demo_model.DemoFileError, match=r"some\.safetensors is a Git LFS pointer"):
        demo_model.load_demo_generator()


def test_damaged_tokenizer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tokenizer.safetensors"
    file.write_bytes(demo_model.TOKENIZER.read_bytes()[:-1000])
    monkeypatch.setattr(demo_model, "TOKENIZER", file)
    with pytest.raises(demo_model.DemoFileError, match=r"tokenizer\.safetensors .*install the pack again"):
        demo_model.load_demo_generator()


def test_missing_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_model, "WEIGHTS", tmp_path / "demo128.safetensors")
    with pytest.raises(demo_model.DemoFileError, match=r"demo128\.safetensors does not exist"):
        demo_model.load_demo_generator()


def test_file_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "demo128.safetensors"
    with open(file, "wb") as content:
        content.truncate(demo_model.MAX_BYTES + 1)
    monkeypatch.setattr(demo_model, "WEIGHTS", file)
    with pytest.raises(demo_model.DemoFileError, match="larger than"):
        demo_model.load_demo_generator()
