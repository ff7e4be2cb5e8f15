"""JEPAPromptFit on a small random CLIP, compared with transformers; its menu, and its model in the host's memory."""

from __future__ import annotations

import gc
import os
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import pytest
import torch
import transformers
from jepa_guidance.host.comfy.memory import unload
from jepa_guidance.host.encoders import menu
from jepa_guidance.host.encoders.host_encoder import load_host_encoder
from jepa_guidance.host.scoring import prompt_fit
from jepa_guidance.host.scoring.prompt_fit import load_prompt_scorer, prompt_fits, prompt_fits_here
from jepa_guidance.jepa_core import EncoderFileError
from jepa_guidance.jepa_core.hub import EncoderDownloadError, EncoderLicenceError
from jepa_guidance.nodes.prompt_fit import JEPAPromptFit
from PIL import Image

from tests.core.conftest import CLIP_TOKENIZER, random_model, save_clip

MINE = os.path.join("mine", "model.safetensors")
LAION = "CLIP-ViT-B-32-laion2B-s34B-b79K"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def models(saved, tmp_path, monkeypatch) -> Iterator[Path]:
    """models/jepa with a CLIP in the folder "mine", and nothing else."""
    folder = tmp_path / "models" / "jepa"
    shutil.copytree(saved, folder / "mine")
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "jepa", ([str(folder)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return folder


@pytest.fixture
def scorer(saved) -> Any:
    return load_prompt_scorer(saved, "clip", "a red fox, sitting")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Twenty different images of 8 bits."""
    coarse = torch.rand(20, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(coarse, size=(150, 180), mode="bicubic").clamp(0, 1)
    return (smooth.movedim(1, -1) * 255).round() / 255


def run(model: str = MINE, text: Any = "a red fox, sitting", **inputs: Any) -> tuple:
    """The node's outputs, as the host's executor gets them."""
    with torch.inference_mode():
        return JEPAPromptFit.execute(text=text, model=model, **inputs).args


def test_fits_are_those_of_transformers(saved, models, images):
    model = transformers.CLIPModel.from_pretrained(saved).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(saved)
    processor = transformers.CLIPProcessor(transformers.CLIPImageProcessor(), tokenizer)
    pictures = [Image.fromarray((image * 255).round().byte().numpy()) for image in images]
    given = processor(text=["a red fox, sitting"], images=pictures, return_tensors="pt")
    with torch.no_grad():
        output = model(**given)
    expected = (output.image_embeds @ output.text_embeds.T)[:, 0].tolist()
    fits, *_ = run(images=images)
    # the processor rounds pixels to 8 bits, which random weights amplify
    assert fits == pytest.approx(expected, abs=5e-3)
    assert torch.tensor(fits).std() > 0.01
    assert all(type(fit) is float for fit in fits)


def test_several_batches_give_what_the_images_give_one_by_one(scorer, images, monkeypatch):
    with torch.inference_mode():
        fits = prompt_fits(images, scorer)
        assert fits == pytest.approx([prompt_fits(image[None], scorer)[0] for image in images], abs=1e-6)
    checks: list[int] = []
    monkeypatch.setattr(prompt_fit, "interrupt_check", lambda: checks.append(1))
    prompt_fits(images, scorer)
    assert len(checks) == 2


def test_a_run_can_be_interrupted(scorer, images):
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        prompt_fits(images, scorer)


def test_an_image_with_nan_gets_nan_in_a_run_and_is_refused_by_the_node(models, scorer, images):
    bad = images[:3].clone()
    bad[1, 0, 0, 0] = torch.nan
    fits = prompt_fits_here(bad, scorer)
    assert fits[1] != fits[1]
    assert fits[::2] == pytest.approx(prompt_fits_here(images[:3], scorer)[::2], abs=1e-6)
    with pytest.raises(ValueError, match="image 1 of the batch holds NaN or infinite pixels"):
        prompt_fits(bad, scorer)
    with pytest.raises(ValueError, match="image 1 of the batch holds NaN or infinite pixels"):
        run(images=bad)


def test_transparent_images_are_seen_over_white(scorer, images):
    alpha = torch.linspace(0, 1, 150)[:, None].expand(3, 150, 180)[..., None]
    over_white = images[:3] * alpha + (1 - alpha)
    assert prompt_fits(torch.cat([images[:3], alpha], -1), scorer) == prompt_fits(over_white, scorer)


# --- the host's memory ------------------------------------------------------------------------------------------------


def loaded_models() -> list[Any]:
    return [entry.model.model for entry in comfy.model_management.current_loaded_models if entry.model]


def test_the_host_loads_and_unloads_the_model(scorer, images):
    assert scorer.model not in loaded_models()
    before = prompt_fits(images[:1], scorer)
    assert scorer.model in loaded_models()
    assert scorer.patcher.model_size() == sum(4 * weight.numel() for weight in scorer.model.parameters())
    unload(scorer.patcher)
    assert scorer.model not in loaded_models()
    assert prompt_fits(images[:1], scorer) == before


def test_in_a_run_the_host_is_not_asked_to_load(scorer, images, monkeypatch):
    before = prompt_fits(images[:2], scorer)

    def refuse(*args: Any, **more: Any) -> None:
        raise AssertionError("asked to load models")

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", refuse)
    monkeypatch.setattr(prompt_fit, "load_models_gpu", refuse)
    with torch.inference_mode():
        assert prompt_fits_here(images[:2], scorer) == before


def test_scorers_of_one_file_share_its_weights_and_unused_ones_are_freed(saved, tmp_path):
    folder = Path(shutil.copytree(saved, tmp_path / "clip"))
    first, second = load_prompt_scorer(folder, "a", "a cat"), load_prompt_scorer(folder, "b", "a dog")
    assert first.patcher is second.patcher
    # an encoder from the same file is another model
    assert load_host_encoder(folder, "a", 224).patcher is not first.patcher
    os.utime(folder / "vocab.json", ns=(1, 1))
    assert load_prompt_scorer(folder, "a", "a cat").patcher is not first.patcher
    gone = weakref.ref(first.model)
    del first, second
    gc.collect()
    assert gone() is None


def test_a_model_that_does_not_fit_on_the_device_is_named(scorer, images, monkeypatch):
    monkeypatch.setattr(prompt_fit, "keep_whole", lambda needed, others: needed)
    with pytest.raises(ValueError, match="clip does not fit into the memory that is free on"):
        prompt_fits(images[:1], scorer)


# --- the node -----------------------------------------------------------------------------------------------------------


def test_the_text_ranks_the_images_best_first(models, images):
    fits, text, scorer = run(images=images[:3])
    order = sorted(range(3), key=fits.__getitem__, reverse=True)
    assert text.split("\n") == [
        f'prompt fit, best first; "a red fox, sitting", {MINE}',
        *(f"{rank}. image {index}: {fits[index]:.3f}" for rank, index in enumerate(order, 1)),
    ]
    assert (scorer.name, scorer.text, scorer.unread) == (MINE, "a red fox, sitting", "")
    assert prompt_fits(images[:3], scorer) == fits


@pytest.mark.parametrize("given", [{}, {"images": torch.zeros(0, 64, 64, 3)}])
def test_without_images_only_the_link_is_made(models, given):
    fits, text, scorer = run(**given)
    assert fits == []
    assert text == f'prompt fit: no images; "a red fox, sitting", {MINE}'
    assert scorer.model.weight.dtype == torch.float32


def test_a_text_that_is_too_long_is_said_on_the_node(models, images):
    _, text, scorer = run(images=images[:1], text="a fox " * 60 + "\n and Its shadow")
    assert scorer.unread.endswith("a fox and its shadow")
    assert 'which does not read the end: "fox a fox a fox' in text
    assert "Shorten the text" in text
    assert max(map(len, text.split("\n"))) < 300


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"text": ""}, "text is empty; write what the images should show"),
        ({"text": " \n\t"}, "text is empty"),
        ({"text": None}, "text must be text, got None"),
        ({"text": "a fox \ud800"}, "text holds half of a character at position 6"),
        ({"images": "a picture"}, "images must be of type IMAGE, got str"),
        ({"images": torch.zeros(2, 8, 8)}, r"images must be \(batch, height, width, 3 or 4\)"),
        ({"model": "dinov2-small"}, "There is no CLIP 'dinov2-small'; put its folder"),
        ({"model": "../mine/model.safetensors"}, "There is no CLIP"),
        ({"model": None}, "There is no CLIP None"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(models, inputs, message):
    with pytest.raises(ValueError, match=message):
        run(**inputs)


def test_a_damaged_file_is_named(models):
    (models / "mine" / "vocab.json").unlink()
    with pytest.raises(EncoderFileError, match=r"mine has no tokenizer: put vocab\.json and merges\.txt"):
        run()


# --- the menu -------------------------------------------------------------------------------------------------------------


def test_the_menu_has_the_clips_of_the_hub_and_those_in_the_folder(models):
    random_model("dinov2").save_pretrained(models / "dino")
    random_model("clip_vision_model").save_pretrained(models / "eyes")
    (models / "broken").mkdir()
    shutil.copy(models / "mine" / "model.safetensors", models / "broken")
    (models / "broken" / "config.json").write_text("{")
    names = menu.clip_names()
    assert names == [MINE, LAION, "clip-vit-large-patch14", "metaclip-h14-fullcc2.5b"]
    schema = JEPAPromptFit.define_schema()
    (combo,) = [entry for entry in schema.inputs if entry.id == "model"]
    assert combo.options == names
    assert combo.default == LAION


def test_a_tokenizer_behind_a_link_that_leads_out_is_not_read(models, tmp_path):
    (models / "mine" / "vocab.json").unlink()
    shutil.copy(CLIP_TOKENIZER / "vocab.json", tmp_path)
    (models / "mine" / "vocab.json").symlink_to(tmp_path / "vocab.json")
    with pytest.raises(ValueError, match=r"vocab\.json is a link that leads out of the model folders"):
        run()


def test_a_hub_encoder_gets_its_tokenizer_beside_the_weights_that_are_there(models, images, monkeypatch):
    """Also where the weights lie in a folder of the user's configuration."""
    (models / "mine").rename(models / LAION)
    for name in ("vocab.json", "merges.txt"):
        (models / LAION / name).unlink()
    asked: list[tuple[str, Path]] = []

    def fetch(name: str, folder: Path) -> None:
        asked.append((name, folder))
        for file in ("vocab.json", "merges.txt"):
            shutil.copy(CLIP_TOKENIZER / file, folder / name)

    monkeypatch.setattr(menu, "fetch_tokenizer", fetch)
    assert len(run(LAION, images=images[:2])[0]) == 2
    assert asked == [(LAION, models)]


def test_what_cannot_be_downloaded_is_named_at_once(models, monkeypatch):
    def fail(*args: Any, **more: Any) -> None:
        raise EncoderDownloadError("cannot download it. Put the weights into a folder")

    monkeypatch.setattr(menu, "fetch_encoder", fail)
    with pytest.raises(
        OSError, match=r"Put the weights into a folder, together with merges\.txt and vocab\.json"
    ):
        run(LAION)


def test_a_model_for_non_commercial_use_needs_consent(models):
    with pytest.raises(EncoderLicenceError, match="Turn non_commercial on to agree"):
        run("metaclip-h14-fullcc2.5b")
