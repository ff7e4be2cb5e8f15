"""D-JEPA in the host, on a small random model, compared with jepa_core alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.cli_args
import comfy.model_management
import comfy.utils
import nodes as host_nodes
import numpy as np
import pytest
import torch
from jepa_guidance.host.comfy import model_folders as folders
from jepa_guidance.host.comfy.sampling import MAX_SEED
from jepa_guidance.host.generators import djepa as adapter
from jepa_guidance.host.generators import djepa_menu as djepa_files
from jepa_guidance.host.generators.djepa import HostDJEPA, class_index, load_host_djepa, preview, sample_djepa
from jepa_guidance.nodes.djepa import DJEPASampler

from jepa_core.djepa import Tokenizer, masked_counts, sample_tokens, save_djepa, to_latents
from tests.core.conftest import random_djepa

SETTINGS: dict[str, Any] = {
    "class_name": "dog",
    "seed": 11,
    "batch_size": 2,
    "steps": 4,
    "cfg": 2.0,
    "temperature": 0.9,
    "denoising_steps": 3,
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("djepa") / "small.safetensors"
    model = random_djepa(channels=16, denoiser="flow")
    save_djepa(path, model, ["cat", "dog", "owl"], tokenizer=Tokenizer().eval(), latent_scale=0.5)
    return path


@pytest.fixture(scope="module")
def loaded(file: Path) -> tuple[HostDJEPA, Any]:
    with torch.inference_mode():
        return load_host_djepa(file, "small")


@pytest.fixture(scope="module")
def djepa(loaded: tuple[HostDJEPA, Any]) -> HostDJEPA:
    return loaded[0]


@torch.inference_mode()
def sample(djepa: HostDJEPA, **changes: Any) -> torch.Tensor:
    samples: torch.Tensor = sample_djepa(djepa, **SETTINGS | changes)["samples"]
    return samples


def test_the_host_changes_no_number(djepa):
    model = djepa.patcher.model
    tokens = sample_tokens(
        model, torch.tensor([1, 1]), [11, 12], steps=4, denoising_steps=3, cfg=2.0, temperature=0.9
    )
    found = sample(djepa)
    torch.testing.assert_close(found, to_latents(tokens, 1) / 0.5, atol=1e-5, rtol=1e-5)
    assert torch.equal(sample(djepa), found)
    alone = sample(djepa, seed=12, batch_size=1)
    torch.testing.assert_close(alone[0], found[1], atol=1e-4, rtol=1e-4)
    assert not any(weight.is_inference() for weight in model.parameters())


def test_the_largest_seed_is_taken(djepa):
    assert sample(djepa, seed=MAX_SEED).isfinite().all()


def test_the_vae_is_the_tokenizer(loaded):
    djepa, vae = loaded
    pixels = torch.rand(1, 32, 32, 3)
    with torch.inference_mode():
        encoded = host_nodes.VAEEncode().encode(vae, pixels)[0]["samples"]
        (decoded,) = host_nodes.VAEDecode().decode(vae, {"samples": encoded})
        latents = djepa.tokenizer.encode(pixels.movedim(-1, 1) * 2 - 1)
        expected = (djepa.tokenizer.decode(latents) + 1) / 2
    torch.testing.assert_close(encoded, latents / 0.5, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(decoded, expected.movedim(1, -1).clamp(0, 1), atol=1e-5, rtol=1e-5)


def test_only_the_masked_part_is_redrawn(djepa):
    latent = {"samples": torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(0))}
    latent["noise_mask"] = torch.zeros(1, 1, 32, 32)
    latent["noise_mask"][..., :8, 8:24] = 1  # two tokens of the first row
    found = sample(djepa, latent=latent, steps=2)
    kept = torch.ones(4, 4, dtype=torch.bool)
    kept[0, 1:3] = False
    expected = latent["samples"].expand(2, -1, -1, -1)
    assert torch.equal(found[..., kept], expected[..., kept])
    assert (found[..., ~kept] - expected[..., ~kept]).abs().max() > 0.05
    latent["noise_mask"].zero_()
    assert torch.equal(sample(djepa, latent=latent, steps=9), expected)
    # without a mask all tokens are drawn, as in the stock sampler
    del latent["noise_mask"]
    assert torch.equal(sample(djepa, latent=latent), sample(djepa))


TWO_MASKS = torch.stack([torch.zeros(8, 8), torch.ones(8, 8)])
TRIANGLE = torch.ones(1, 4, 4).tril()


@pytest.mark.parametrize(
    ("latent", "message"),
    [
        ({"samples": torch.zeros(1, 4, 4, 4)}, r"shape \(1, 4, 4, 4\); small takes \(batch, 16, 4, 4\)"),
        ({"samples": torch.zeros(3, 16, 4, 4)}, "holds 3 images and batch_size is 2"),
        ({"samples": torch.full((1, 16, 4, 4), torch.nan)}, "NaN"),
        ({"samples": torch.zeros(2, 16, 4, 4), "noise_mask": TWO_MASKS}, "one mask"),
    ],
)
def test_a_latent_that_does_not_fit_is_refused(djepa, latent, message):
    with pytest.raises(ValueError, match=message):
        sample(djepa, latent=latent, steps=11)


MASKED = {"samples": torch.zeros(1, 16, 4, 4), "noise_mask": TRIANGLE}


@pytest.mark.parametrize(
    ("latent", "tokens", "message"),
    [
        (None, 16, "steps 17 is more than the 16 tokens that small has to draw: 16 are taken"),
        (MASKED, 10, "steps 17 is more than the 10 tokens that small has to draw inside the mask: 10 are"),
    ],
)
def test_more_steps_than_tokens_are_as_many_as_tokens_and_it_says_so(djepa, latent, tokens, message):
    said: list[str] = []
    found = sample(djepa, latent=latent, steps=17, say=said.append)
    assert [message in text for text in said] == [True]
    assert torch.equal(found, sample(djepa, latent=latent, steps=tokens, say=said.append))
    assert len(said) == 1


def test_the_node_gives_the_seed_of_each_image(djepa):
    settings = {"djepa": djepa, **SETTINGS}
    with torch.inference_mode():
        latent, seeds = DJEPASampler.execute(**settings | {"seed": MAX_SEED}).result
        alone = [
            DJEPASampler.execute(**settings | {"seed": seed, "batch_size": 1}).result[0] for seed in seeds
        ]
    assert seeds == [MAX_SEED, 0]
    for image, own in zip(latent["samples"], alone, strict=True):
        torch.testing.assert_close(image, own["samples"][0], atol=1e-4, rtol=1e-4)


def test_classes_are_chosen_by_name(djepa):
    assert [class_index(djepa, name) for name in ("cat", " Dog ", "OWL", "any")] == [0, 1, 2, 3]
    with pytest.raises(
        ValueError, match="class_name 'emu' is not a class of small; it has cat, dog, owl, and any"
    ):
        class_index(djepa, "emu")
    many = HostDJEPA("big", djepa.patcher, None, tuple(map(str, range(1000))), 1.0)
    with pytest.raises(ValueError, match=r"it has 0, 1, 2, 3, 4, \.\.\. 999, and any"):
        class_index(many, "1000")


def test_tokens_that_are_not_finite_are_refused(djepa, monkeypatch):
    monkeypatch.setattr(adapter, "sample_tokens", lambda *_args, **_kw: torch.full((2, 16, 16), torch.inf))
    with pytest.raises(ValueError, match=r"NaN or infinite tokens at cfg 2\.0"):
        sample(djepa)


def hooked(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """All arguments of the host's progress hook, with previews on."""
    calls: list[tuple] = []
    method = comfy.cli_args.LatentPreviewMethod.Auto
    monkeypatch.setattr(comfy.cli_args.args, "preview_method", method)
    hook = lambda done, total, picture, node_id=None: calls.append((done, total, picture))  # noqa: E731
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    return calls


def test_progress_counts_sets_of_tokens_and_shows_them_appear(djepa, monkeypatch):
    calls = hooked(monkeypatch)
    sample(djepa)
    assert [(done, total) for done, total, _ in calls] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for (_, _, (kind, picture, edge)), left in zip(calls, masked_counts(16, 4), strict=True):
        assert (kind, edge) == ("JPEG", 256)
        grid = np.asarray(picture).reshape(4, 64, 4, 64, 3)
        grey = (grid == 128).all((1, 3, 4))
        assert grey.sum() == left


def test_a_preview_is_the_decoded_image(djepa):
    tokens = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        picture = np.asarray(preview(djepa, tokens, torch.ones(1, 16, dtype=torch.bool)))
        pixels = djepa.tokenizer.decode(to_latents(tokens, 1))[0].add(1).div(2).clamp(0, 1).mul(255).round()
    assert np.array_equal(picture[::8, ::8], pixels.byte().movedim(0, -1).numpy())


def test_nothing_is_decoded_without_previews(djepa, monkeypatch):
    calls = hooked(monkeypatch)
    monkeypatch.setattr(comfy.cli_args.args, "preview_method", comfy.cli_args.LatentPreviewMethod.NoPreviews)
    monkeypatch.setattr(adapter, "preview", None)
    sample(djepa)
    assert all(picture is None for _, _, picture in calls)


def test_an_interruption_ends_sampling_after_the_current_set(djepa, monkeypatch):
    calls = hooked(monkeypatch)
    real = adapter.interrupt_check

    def check() -> None:
        if calls:
            comfy.model_management.interrupt_current_processing()
        real()

    monkeypatch.setattr(adapter, "interrupt_check", check)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(djepa)
    assert len(calls) == 1


def test_a_file_without_a_tokenizer_gives_no_vae(tmp_path):
    save_djepa(tmp_path / "bare.safetensors", random_djepa(), ["cat", "dog", "owl"])
    djepa, vae = load_host_djepa(tmp_path / "bare.safetensors", "bare")
    assert vae is None
    assert sample(djepa).shape == (2, 5, 4, 4)


def test_the_menu_and_its_files(file, tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "djepa", ([str(file.parent)], {".pt"}))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "jepa", ([], set()))
    folders.register_folders()
    assert djepa_files.djepa_names()[0] == djepa_files.DJEPA_DEMO
    assert djepa_files.djepa_file("small.safetensors") == file
    for name in ("absent.safetensors", "../small.safetensors", "/etc/passwd"):
        with pytest.raises(ValueError, match="There is no D-JEPA"):
            djepa_files.djepa_file(name)
    (tmp_path / "djepa").mkdir()
    (tmp_path / "djepa" / "linked.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    (tmp_path / "elsewhere.safetensors").write_bytes(file.read_bytes())
    folder_paths.filename_list_cache.clear()
    with pytest.raises(ValueError, match="leads out of the model folders"):
        djepa_files.djepa_file("linked.safetensors")
