"""Which models fit together and what is refused; the encoder as one of the host's models."""

from __future__ import annotations

import comfy.model_patcher
import comfy.model_sampling
import pytest
import torch
from jepa_guidance.host.gradient.image_gradient import ScoreGradient
from jepa_guidance.host.guidance.refusals import check_one_device, check_sampling
from jepa_guidance.host.guidance.schedule import Schedule
from safetensors.torch import save_file

from jepa_core import EncoderFileError, RarityGradient
from tests.host.guide import guide_model
from tests.host.hosts import newer_host

NEWER_KINDS = [pytest.param(kind, marks=newer_host) for kind in ("IMG_TO_IMG_FLOW", "V_PREDICTION_DDPM")]


@pytest.mark.parametrize("kind", ["IMG_TO_IMG", *NEWER_KINDS])
def test_a_model_whose_noise_has_no_known_scale_is_refused_by_name(tiny, kind):
    with pytest.raises(ValueError, match=rf"sample by {kind}:"):
        guide_model(tiny.make_model(kind), tiny.vae, tiny.encoder, Schedule(), RarityGradient(k=3))


def test_a_model_that_adds_no_noise_is_refused_whatever_its_name(tiny):
    class Repaint(comfy.model_sampling.CONST):
        """Starts from the picture instead of noise."""

        def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
            return latent_image

    class Sampling(comfy.model_sampling.ModelSamplingDiscreteFlow, Repaint):
        pass

    model = tiny.make_model("FLOW")
    model.add_object_patch("model_sampling", Sampling())
    with pytest.raises(ValueError, match=r"sample by Repaint:"):
        guide_model(model, tiny.vae, tiny.encoder, Schedule(), RarityGradient(k=3))


@pytest.mark.parametrize(
    "kind", ["EPS", "V_PREDICTION", "V_PREDICTION_EDM", "EDM", "FLOW", "FLUX", "FLOW_COSMOS"]
)
def test_models_whose_noise_has_a_known_scale_are_not_refused(tiny, kind):
    check_sampling(tiny.make_model(kind))


def test_the_host_loads_everything_that_a_run_needs_at_once(tiny, stock):
    """Denoiser, VAE and encoder are loaded in one call, so that the host makes room for all of them."""
    import comfy.model_management

    comfy.model_management.unload_all_models()
    seen = []

    def look(denoise, x, sigma, base_model):
        loaded = [entry.model.model for entry in comfy.model_management.current_loaded_models]
        seen.append([any(part is one for one in loaded) for part in parts])
        return ScoreGradient(torch.zeros(len(x)), torch.zeros_like(x))

    parts = (tiny.model.model, tiny.vae.first_stage_model, tiny.encoder.patcher.model)
    patched = guide_model(tiny.model, tiny.vae, tiny.encoder, Schedule(), RarityGradient(k=3), gradient=look)
    stock(patched, tiny)
    assert seen
    assert all(all(entry) for entry in seen)


def test_latents_that_the_encoder_cannot_see_are_refused_with_their_shape(tiny):
    from comfy.nested_tensor import NestedTensor
    from jepa_guidance.host.guidance.refusals import check_frames

    check_frames(torch.zeros(2, 4, 8, 8), tiny.encoder)
    check_frames(torch.zeros(2, 16, 1, 8, 8), tiny.encoder)
    for shape, said in (
        ((1, 64, 100), r"\(1, 64, 100\)"),
        ((1, 16, 5, 8, 8), "video of 5 latent frames, and tiny sees still images. Set its length to 1"),
    ):
        with pytest.raises(ValueError, match=said):
            check_frames(torch.zeros(shape), tiny.encoder)
    with pytest.raises(ValueError, match="several parts"):
        check_frames(NestedTensor([torch.zeros(1, 4, 8, 8), torch.zeros(1, 8, 10)]), tiny.encoder)


def test_a_model_on_several_devices_is_refused(tiny):
    model = tiny.model.clone()
    check_one_device(model)
    model.set_additional_models("multigpu", [tiny.model.clone()])
    with pytest.raises(ValueError, match="spread over 2"):
        check_one_device(model)


@newer_host
def test_a_model_spread_over_devices_after_patching_is_refused_when_it_runs(monkeypatch, tiny, stock):
    # the host would copy every model to a second device, which the test does not have
    monkeypatch.setattr(comfy.model_patcher.ModelPatcher, "match_multigpu_clones", lambda self: None)
    patched = guide_model(tiny.model, tiny.vae, tiny.encoder, Schedule(), RarityGradient(k=3))
    other = tiny.make_model()
    other.is_multigpu_base_clone = False  # the test has one device, and the host would look for the second
    patched.set_additional_models("multigpu", [other])
    with pytest.raises(ValueError, match="spread over 2"):
        stock(patched, tiny)


def test_the_encoder_is_one_of_the_models_that_the_host_loads(tiny):
    from jepa_guidance.host.encoders.host_encoder import use_encoder

    assert type(tiny.encoder.patcher) is comfy.model_patcher.ModelPatcher
    assert tiny.encoder.patcher.model_size() == sum(
        weight.nbytes for weight in tiny.encoder.patcher.model.state_dict().values()
    )
    use_encoder(tiny.encoder)
    loaded = comfy.model_management.loaded_models()
    assert any(patcher.model is tiny.encoder.patcher.model for patcher in loaded)


def test_the_folder_accepts_only_safetensors_and_keeps_the_users_paths(tmp_path, monkeypatch):
    import folder_paths
    from jepa_guidance.host.comfy.model_folders import register_folders
    from jepa_guidance.host.encoders.menu import encoder_file, encoder_names

    mine = tmp_path / "mine"
    mine.mkdir()
    save_file({"x": torch.zeros(1)}, mine / "mine.safetensors")
    (mine / "pickle.pt").write_bytes(b"\x80\x04N.")
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "jepa", ([str(mine)], {".pt", ".safetensors"}))
    register_folders()
    register_folders()
    assert folder_paths.get_folder_paths("jepa") == [str(mine), str(tmp_path / "models" / "jepa")]
    names = encoder_names()
    assert "mine.safetensors" in names
    assert "dinov2-with-registers-small" in names
    assert not any("pickle" in name for name in names)
    assert encoder_file("mine.safetensors") == mine / "mine.safetensors"
    for name in ("pickle.pt", "../mine/mine.safetensors", "/etc/passwd", "absent.safetensors"):
        with pytest.raises(ValueError, match="There is no encoder"):
            encoder_file(name)


def test_a_file_that_is_not_an_encoder_is_refused_by_name(tmp_path):
    from jepa_guidance.host.encoders.host_encoder import load_host_encoder

    file = tmp_path / "unet.safetensors"
    save_file({"model.diffusion_model.out.weight": torch.zeros(1)}, file)
    with pytest.raises(EncoderFileError, match=r"unet\.safetensors"):
        load_host_encoder(file, "unet", 224)
