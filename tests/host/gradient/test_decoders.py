"""Decoders from a clean latent to the image, compared with slow references and the host's own tiny decoders."""

from __future__ import annotations

import comfy.latent_formats
import comfy.model_management
import comfy.taesd.taesd
import folder_paths
import latent_preview
import pytest
import torch
from jepa_guidance.host.gradient.chain import LatentGradient
from jepa_guidance.host.gradient.decoders import choose_decoder, decoded, shrink, tiny_decoder_name
from jepa_guidance.host.gradient.image_gradient import Guide, ImageGradient
from jepa_guidance.host.guidance.refusals import check_vae_fits
from jepa_guidance.host.guidance.schedule import Schedule
from jepa_guidance.host.options import DECODERS, ENCODER_RESOLUTION, FULL, TINY, TINY_OR_SMALL
from safetensors.torch import save_file

from jepa_core import RarityGradient
from tests.host.guide import guide_model
from tests.host.hosts import newer_host

SD15 = comfy.latent_formats.SD15()


def random(shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def choice(tiny, name, vae=None, fit="squash", latent_format=SD15):
    return choose_decoder(name, vae or tiny.vae, latent_format, tiny.encoder.encoder.image_size, fit)


@pytest.fixture
def approx(tmp_path, monkeypatch):
    """An empty models/vae_approx."""
    extensions = {".safetensors", ".pth"}
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "vae_approx", ([str(tmp_path)], extensions))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path


def save_tiny(folder, name, channels=4, randomise=None):
    """A tiny decoder of the host's class with random weights."""
    tensors = comfy.taesd.taesd.TAESD(latent_channels=channels).taesd_decoder
    randomise(tensors, seed=4)
    save_file(tensors.state_dict(), folder / f"{name}.safetensors")


# --- shrinking the latent -------------------------------------------------------------------------------------


def triangle_weights(old, new):
    """The matrix of the antialiased bilinear resize: a triangle two new pixels wide around each new centre."""
    scale = old / new
    rows = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        for j in range(old):
            rows[i, j] = max(0.0, 1 - abs((j + 0.5) - (i + 0.5) * scale) / scale)
    return rows / rows.sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("size", "fit", "window", "expected"),
    [
        ((20, 20), "squash", (0, 20, 0, 20), (14, 14)),
        ((30, 18), "squash", (0, 30, 0, 18), (14, 14)),
        ((30, 10), "squash", (0, 30, 0, 10), (14, 10)),  # the short side is not enlarged
        ((30, 18), "crop", (6, 24, 0, 18), (14, 14)),
        ((16, 25), "crop", (0, 16, 4, 20), (14, 14)),
        ((30, 10), "crop", (10, 20, 0, 10), (10, 10)),  # the centre square is small enough
    ],
)
def test_shrinking_is_the_resize_by_definition_and_so_is_its_gradient(size, fit, window, expected):
    latent = random((1, 4, *size)).requires_grad_()
    small = shrink(latent, 14, fit)
    assert small.shape[-2:] == expected
    top, bottom, left, right = window
    part = latent[..., top:bottom, left:right]
    rows = triangle_weights(bottom - top, expected[0])
    columns = triangle_weights(right - left, expected[1])
    reference = rows @ part @ columns.T
    assert torch.allclose(small, reference, atol=1e-12)
    cotangent = random(small.shape, 1)
    (found,) = torch.autograd.grad(small, latent, cotangent)
    wanted = torch.zeros_like(latent)
    wanted[..., top:bottom, left:right] = rows.T @ cotangent @ columns
    assert torch.allclose(found, wanted, atol=1e-12)


@pytest.mark.parametrize("fit", ["squash", "crop"])
@pytest.mark.parametrize("size", [(14, 14), (14, 9), (5, 5)])
def test_latents_that_are_small_enough_decode_like_the_full_decoder_bit_for_bit(tiny, size, fit):
    latents = random((2, 4, *size), dtype=torch.float32)
    found = []
    for name in (FULL, ENCODER_RESOLUTION):
        decoder = choice(tiny, name, fit=fit)
        rarity = RarityGradient(k=3)
        chain = LatentGradient(
            decoder, ImageGradient([Guide(tiny.encoder.encoder)], rarity, fit=fit, antialias=True)
        )
        found.append(chain.of_latent(latents))
    assert torch.equal(found[0].score, found[1].score)
    assert torch.equal(found[0].gradient, found[1].gradient)


@pytest.mark.parametrize(("fit", "size"), [("squash", (20, 20)), ("squash", (16, 24)), ("crop", (16, 24))])
def test_the_decoded_picture_has_the_side_that_the_encoder_sees(tiny, fit, size):
    decoder = choice(tiny, ENCODER_RESOLUTION, fit=fit)
    with torch.inference_mode():
        image = decoded(decoder.vae, decoder.prepare(random((1, 4, *size), dtype=torch.float32)))
    assert image.shape == (1, 28, 28, 3)


def test_the_side_depends_on_the_vae_and_is_rounded_up(tiny):
    tiny.vae.upscale_ratio = 8
    decoder = choice(tiny, ENCODER_RESOLUTION)  # 28 / 8 = 3.5
    assert decoder.prepare(random((1, 4, 8, 8))).shape == (1, 4, 4, 4)


class Enlarge(torch.nn.Module):
    """Decodes three channels to an image of twice the side; the same picture at any resolution."""

    def decode(self, latent):
        return latent[:, :3].repeat_interleave(2, -1).repeat_interleave(2, -2)


@pytest.mark.parametrize("fit", ["squash", "crop"])
def test_a_smooth_latent_shows_the_encoder_the_same_part_of_the_picture(tiny, fit):
    tiny.vae.first_stage_model = Enlarge()
    y, x = torch.meshgrid(torch.linspace(0, 1, 32), torch.linspace(-1, 1, 42), indexing="ij")
    latent = torch.stack([y, x, x * y, y])[None]
    seen = {}
    for name in (FULL, ENCODER_RESOLUTION):
        decoder = choice(tiny, name, fit=fit)
        image = decoded(decoder.vae, decoder.prepare(latent))
        seen[name] = tiny.encoder.encoder.preprocess(image, fit=fit)
    # at most half a latent pixel
    assert (seen[FULL] - seen[ENCODER_RESOLUTION]).abs().max() < 0.2 * seen[FULL].std()


# --- the tiny autoencoder -------------------------------------------------------------------------------------

FORMATS = ("SD15", "SDXL", "SDXL_Playground_2_5", "SD3", "Flux", pytest.param("Flux2", marks=newer_host))


@pytest.mark.parametrize("name", FORMATS)
def test_the_tiny_autoencoder_is_the_hosts_preview_decoder(tiny, approx, monkeypatch, name):
    with torch.inference_mode():  # as nodes create them
        latent_format = getattr(comfy.latent_formats, name)()
    channels = latent_format.latent_channels
    save_tiny(approx, latent_format.taesd_decoder_name, channels, tiny.randomise)
    monkeypatch.setattr(latent_preview.args, "preview_method", latent_preview.LatentPreviewMethod.TAESD)
    previewer = latent_preview.get_previewer(torch.device("cpu"), latent_format)
    x0 = random((1, channels, 3, 3), dtype=torch.float32)
    with torch.inference_mode():
        decoder = choice(tiny, TINY, latent_format=latent_format)
        expected = (previewer.taesd.decode(x0) + 1).div(2).clamp(0, 1).movedim(1, -1)
        found = decoded(decoder.vae, decoder.prepare(latent_format.process_out(x0)))
    assert 0 <= found.min() < found.max() <= 1
    assert torch.allclose(found, expected, atol=1e-5)
    latent = latent_format.process_out(x0).requires_grad_()
    with torch.inference_mode(False):
        decoder.prepare(latent).sum().backward()
    assert latent.grad is not None


def test_gradient_through_the_tiny_autoencoder_is_the_finite_difference(tiny, approx):
    save_tiny(approx, "taesd_decoder", randomise=tiny.randomise)
    decoder = choice(tiny, TINY, fit="crop")
    decoder.vae.first_stage_model.double()
    decoder.vae.vae_dtype = torch.float64
    latent = random((1, 4, 20, 17)).requires_grad_()
    image = decoded(decoder.vae, decoder.prepare(latent))
    cotangent, direction = random(image.shape, 1), random(latent.shape, 2)
    (gradient,) = torch.autograd.grad(image, latent, cotangent)
    with torch.no_grad():
        ends = [decoded(decoder.vae, decoder.prepare(latent + step * direction)) for step in (-1e-6, 1e-6)]
    expected = ((ends[1] - ends[0]) * cotangent).sum() / 2e-6
    assert (gradient * direction).sum().item() == pytest.approx(expected.item(), rel=1e-4)


class LayerDecoder(torch.nn.Module):
    """RGB and alpha of each pixel from the four channels of its latent, as decoders with transparency give them."""

    def decode(self, latent):
        return latent.tanh()


def test_a_transparent_picture_is_seen_over_white_and_so_is_its_gradient(tiny):
    tiny.vae.first_stage_model, tiny.vae.vae_dtype = LayerDecoder().double(), torch.float64
    latent = random((1, 4, 5, 6)).requires_grad_()
    image = decoded(tiny.vae, latent)
    colours, alpha = ((latent.tanh() + 1) / 2).movedim(1, -1).split((3, 1), -1)
    torch.testing.assert_close(image, colours * alpha + 1 - alpha)
    cotangent, direction = random(image.shape, 1), random(latent.shape, 2)
    (gradient,) = torch.autograd.grad(image, latent, cotangent)
    with torch.no_grad():
        ends = [decoded(tiny.vae, latent + step * direction) for step in (-1e-6, 1e-6)]
    expected = ((ends[1] - ends[0]) * cotangent).sum() / 2e-6
    assert (gradient * direction).sum().item() == pytest.approx(expected.item(), rel=1e-6)
    opaque = latent.detach().clone()
    opaque[:, 3] = 100
    assert torch.equal(decoded(tiny.vae, opaque), ((opaque.tanh() + 1) / 2)[:, :3].movedim(1, -1))


@pytest.mark.parametrize("name", DECODERS)
def test_a_guided_run_loads_only_the_decoder_that_it_uses(tiny, approx, stock, name):
    save_tiny(approx, "taesd_decoder", randomise=tiny.randomise)
    with torch.inference_mode():
        patched = guide_model(
            tiny.model, tiny.vae, tiny.encoder, Schedule(), RarityGradient(k=3), decoder=name
        )
    extra = patched.get_additional_models_with_key("jepa_guidance")
    assert (tiny.vae.patcher in extra) == (name not in (TINY, TINY_OR_SMALL))
    assert len(extra) == 2
    latent = {"samples": torch.zeros(1, 4, 20, 20)}
    guided = stock(patched, tiny, latent_image=latent)
    assert guided.isfinite().all()
    assert not torch.equal(guided, stock(tiny.model, tiny, latent_image=latent))
    assert not getattr(comfy.model_management, "in_training", False)  # newer than the oldest host
    loaded = [patcher.model for patcher in comfy.model_management.loaded_models()]
    assert all(any(patcher.model is model for model in loaded) for patcher in extra)


def test_a_missing_tiny_autoencoder_is_refused_with_file_folder_and_fix(tiny, approx):
    with pytest.raises(ValueError, match=r"taesd_decoder\.safetensors in models/vae_approx") as refused:
        choice(tiny, TINY)
    assert "'encoder resolution'" in str(refused.value)
    (approx / "taesd_decoder.pth").write_bytes(b"\x80\x04N.")
    with pytest.raises(ValueError, match=r"taesd_decoder\.pth is there, but only \.safetensors"):
        choice(tiny, TINY)
    assert tiny_decoder_name(SD15) is None


def test_a_format_without_a_tiny_autoencoder_is_refused(tiny, approx):
    with pytest.raises(ValueError, match="no tiny autoencoder for this model's latents"):
        choice(tiny, TINY, latent_format=comfy.latent_formats.LatentFormat())


def test_the_fast_preset_falls_back_and_says_so(tiny, approx):
    fallback = choice(tiny, TINY_OR_SMALL)
    assert fallback.vae is tiny.vae
    assert "taesd_decoder.safetensors" in fallback.description
    assert fallback.prepare(torch.zeros(1, 4, 20, 20)).shape == (1, 4, 14, 14)
    none = choice(tiny, TINY_OR_SMALL, latent_format=comfy.latent_formats.LatentFormat())
    assert "no tiny one exists" in none.description
    save_tiny(approx, "taesd_decoder", randomise=tiny.randomise)
    assert choice(tiny, TINY_OR_SMALL).description == "tiny autoencoder taesd_decoder.safetensors"


@pytest.mark.parametrize("fault", ["truncated", "pointer", "incomplete", "other channels"])
def test_a_tiny_autoencoder_that_does_not_fit_is_refused_by_name(tiny, approx, fault):
    save_tiny(approx, "taesd_decoder", 16 if fault == "other channels" else 4, tiny.randomise)
    file = approx / "taesd_decoder.safetensors"
    if fault == "truncated":
        file.write_bytes(file.read_bytes()[:1000])
    elif fault == "pointer":
        file.write_text("version https://git-lfs.github.com/spec/v1\n")
    elif fault == "incomplete":
        save_file({"1.weight": torch.zeros(64, 4, 3, 3)}, file)
    own = {"truncated": "damaged: it ends after 1000 of", "pointer": "a Git LFS pointer"}
    why = own.get(fault, "damaged or not a tiny decoder")
    with pytest.raises(ValueError, match=rf"taesd_decoder\.safetensors is {why}"):
        choice(tiny, TINY)


def test_an_unknown_decoder_is_refused(tiny):
    with pytest.raises(ValueError, match="decoder must be one of full"):
        choice(tiny, "fastest")
    check_vae_fits(tiny.vae, tiny.model)
