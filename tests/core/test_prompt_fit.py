"""Prompt fit equals transformers' own CLIP; bad files are refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from jepa_core import EncoderFileError
from jepa_core.clip_tokenizer import build_tokenizer, read_vocabulary
from jepa_core.prompt_fit import PromptFit, load_prompt_fit
from tests.core.conftest import CLIP_TOKENIZER, save_clip

TEXTS = [
    "a photo of a cat",
    "An ASTRONAUT, riding a horse!!  in the\nstyle of Ukiyo-e; it's 4k",
    "\u00fcn\u00efcode \u5317\u4eac \U0001f431",
    "stop <|endoftext|> here",
    "x",
]
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:036e6e2b\nsize 3944552\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def loaded(folder) -> PromptFit:
    return load_prompt_fit(folder)


@pytest.fixture(scope="module")
def own(folder) -> Callable[[list[Any], list[str]], Tensor]:
    """Return a function (pictures, texts) -> cosines (pictures, texts), by transformers alone."""
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    processor = transformers.CLIPProcessor(
        transformers.CLIPImageProcessor(), transformers.AutoTokenizer.from_pretrained(folder)
    )

    @torch.no_grad()
    def cosines(pictures: list[Tensor], texts: list[str], pixels: Tensor | None = None) -> Tensor:
        given = processor(
            text=texts,
            images=list(map(pil, pictures)),
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=77,
        )
        if pixels is not None:
            given["pixel_values"] = pixels
        output = model(**given)
        return output.image_embeds @ output.text_embeds.T

    return cosines


def pil(picture: Tensor) -> Any:
    return Image.fromarray((picture * 255).round().byte().numpy())


def noise(height: int, width: int, channels: int = 3) -> Tensor:
    """Noise of 8 bits: what a resize changes most."""
    generator = torch.Generator().manual_seed(height)
    return (torch.rand(height, width, channels, generator=generator) * 255).round() / 255


# --- the same as transformers ---------------------------------------------------------------------------------------


def test_pixels_are_those_of_the_processor_without_its_rounding(loaded, photos):
    """The processor rounds to 8 bits after the columns and after the rows: each time by half a level at most, and
    the lobes of the second kernel widen the first a little."""
    processor = transformers.CLIPImageProcessor()
    std = torch.tensor(processor.image_std)[:, None, None]
    for picture in (*photos, noise(333, 517), noise(100, 90), noise(64, 200), noise(7, 5)):
        wanted = processor(pil(picture), return_tensors="pt")["pixel_values"][0]
        levels = 255 * std * (loaded.preprocess(picture[None])[0] - wanted)
        assert levels.abs().max() < 1.1
        assert levels.abs().mean() < 0.35  # 0.25 is the mean of one rounding


def test_fit_is_the_cosine_of_transformers(loaded, own, photos):
    pictures = [*photos, noise(333, 517)]
    pixels = torch.cat([loaded.preprocess(picture[None]) for picture in pictures])
    found = torch.stack([torch.cat([loaded.fit(one[None], text) for one in pictures]) for text in TEXTS], 1)
    # of the same pixels: rounding of float32
    torch.testing.assert_close(found, own(pictures, TEXTS, pixels), rtol=0, atol=1e-6)
    # of the processor's pixels: rounding to 8 bits, which random weights amplify
    torch.testing.assert_close(found, own(pictures, TEXTS), rtol=0, atol=5e-3)
    assert found.std(0).min() > 0.02


def test_a_picture_as_large_as_the_model_sees_is_not_changed(loaded, own):
    picture = noise(224, 224)
    assert loaded.fit(picture[None], TEXTS[0]).item() == pytest.approx(
        own([picture], TEXTS[:1]).item(), abs=1e-6
    )


def test_a_batch_gives_what_its_images_give_one_by_one(loaded):
    images = torch.stack([noise(80, 60) * (n / 4) for n in range(1, 5)])
    fits = loaded.fit(images, "a cat")
    assert fits.shape == (4,)
    assert fits.dtype == torch.float32
    assert fits.tolist() == pytest.approx(
        [loaded.fit(image[None], "a cat").item() for image in images], abs=1e-6
    )
    assert fits.std() > 1e-3


def test_a_text_longer_than_the_model_reads_is_cut_as_the_processor_does_and_said(loaded, own):
    longest = "cat dog " * 37 + "bird"  # 75 tokens, and two for the beginning and the end
    assert loaded.unread(longest) == ""
    picture = noise(224, 224)
    text = longest + " Swims, FAR away"
    assert loaded.unread(text) == "swims , far away"
    fit = loaded.fit(picture[None], text).item()
    assert fit == pytest.approx(own([picture], [text]).item(), abs=1e-6)
    assert fit == loaded.fit(picture[None], longest).item()


def test_transparent_pixels_are_seen_over_white(loaded):
    picture = noise(50, 70, 4)
    over_white = picture[..., :3] * picture[..., 3:] + (1 - picture[..., 3:])
    assert torch.equal(loaded.fit(picture[None], "a"), loaded.fit(over_white[None], "a"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_image_with_a_pixel_that_is_not_finite_gets_nan_and_the_others_their_fit(loaded, bad):
    images = torch.stack([noise(60, 90)] * 3)
    images[1, 0, 0, 0] = bad  # outside what is cut out
    fits = loaded.fit(images, "a")
    assert fits[1].isnan()
    alone = loaded.fit(images[:1], "a").item()
    assert fits[[0, 2]].tolist() == pytest.approx([alone, alone], abs=1e-6)


def test_a_very_long_image_takes_little_memory(loaded):
    assert loaded.fit(torch.rand(1, 3, 4000, 3), "a").isfinite().all()


def test_the_model_is_frozen_and_loading_leaves_the_random_state_alone(folder):
    before = torch.random.get_rng_state()
    with torch.inference_mode():
        loaded = load_prompt_fit(folder)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not loaded.model.training
    assert not any(weight.requires_grad or weight.is_inference() for weight in loaded.parameters())
    assert not loaded.fit(torch.rand(1, 9, 9, 3), "a").requires_grad


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def copied(folder, tmp_path) -> Path:
    """A copy of the folder, to be changed."""
    return Path(shutil.copytree(folder, tmp_path / "clip"))


def change_config(folder: Path, **changes: Any) -> None:
    """Change entries; those of a tower as text_config={...}."""
    file = folder / "config.json"
    settings = json.loads(file.read_text())
    for name, value in changes.items():
        settings[name] = settings[name] | value if isinstance(value, dict) else value
    file.write_text(json.dumps(settings))


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("joined", [True, False])
def test_one_file_of_the_tokenizer_is_enough(copied, loaded, joined):
    vocabulary = read_vocabulary(copied)
    merges = [" ".join(pair) if joined else list(pair) for pair in vocabulary.merges]
    model = {"type": "BPE", "vocab": vocabulary.tokens, "merges": merges}
    (copied / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model}))
    (copied / "merges.txt").unlink()
    other = load_prompt_fit(copied / "model.safetensors")
    for text in TEXTS:
        assert torch.equal(other.text_embedding(text), loaded.text_embedding(text))


def test_the_tokenizer_is_the_one_that_transformers_reads_from_the_folder():
    reference = transformers.AutoTokenizer.from_pretrained(CLIP_TOKENIZER)
    tokenizer = build_tokenizer(read_vocabulary(CLIP_TOKENIZER))
    for text in (*TEXTS, "  ", "1234 a.b,c", "caf\u00e9 na\u00efve"):
        assert tokenizer(text)["input_ids"] == reference(text)["input_ids"]


def test_half_precision_is_widened_and_wrong_end_tokens_do_not_matter(copied, own):
    change_tensors(copied, lambda all_: all_.update({name: one.half() for name, one in all_.items()}))
    change_config(copied, text_config={"eos_token_id": 2, "bos_token_id": 0, "projection_dim": 512})
    loaded = load_prompt_fit(copied)
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}
    picture = noise(224, 224)
    assert loaded.fit(picture[None], TEXTS[3]).item() == pytest.approx(
        own([picture], TEXTS[3:4]).item(), abs=5e-3
    )


def test_how_pixels_are_normalised_is_read_from_the_preprocessor(copied):
    (copied / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0, 0, 0], "image_std": [1, 1, 1]})
    )
    picture = noise(224, 224)
    assert torch.equal(load_prompt_fit(copied).preprocess(picture[None])[0], picture.movedim(-1, 0))


def test_weights_that_have_no_part_in_it_may_be_missing_or_more(copied):
    def change(tensors: dict[str, Tensor]) -> None:
        del tensors["logit_scale"]
        tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]

    change_tensors(copied, change)
    load_prompt_fit(copied)


SPOILED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, r"model\.safetensors does not exist|clip does not exist"),
    "weights are a pointer": (
        lambda at: (at / "model.safetensors").write_text(LFS),
        r"model\.safetensors is a Git LFS pointer.*git lfs pull",
    ),
    "weights cut off": (
        lambda at: (at / "model.safetensors").write_bytes((at / "model.safetensors").read_bytes()[:-1]),
        r"model\.safetensors is damaged: it ends after .* download it again",
    ),
    "no config": (
        lambda at: (at / "config.json").unlink(),
        r"config\.json is missing or does not say model_type clip",
    ),
    "config is a pointer": (
        lambda at: (at / "config.json").write_text(LFS),
        r"config\.json is a Git LFS pointer",
    ),
    "another model": (
        lambda at: change_config(at, model_type="siglip"),
        r"config\.json is missing or does not say model_type clip",
    ),
    "no text_config": (
        lambda at: change_config(at, text_config=None),
        r"config\.json has no text_config",
    ),
    "no vision_config": (
        lambda at: change_config(at, vision_config=[]),
        r"config\.json has no vision_config",
    ),
    "too many layers": (
        lambda at: change_config(at, text_config={"num_hidden_layers": 10**6}),
        r"num_hidden_layers 1000000 is not a whole number from 1 to 100",
    ),
    "more layers than weights": (
        lambda at: change_config(at, text_config={"num_hidden_layers": 90, "hidden_size": 4096}),
        r"needs \d+ weights and has \d+; tensors are missing",
    ),
    "heads that do not divide": (
        lambda at: change_config(at, text_config={"num_attention_heads": 3}),
        r"num_attention_heads 3 does not divide the width 32",
    ),
    "another activation": (
        lambda at: change_config(at, text_config={"hidden_act": "rm"}),
        r"hidden_act 'rm' is not supported",
    ),
    "another size": (
        lambda at: change_config(at, vision_config={"image_size": 192}),
        r"has 1 mismatched tensors, first",
    ),
    "patches without end": (
        lambda at: change_config(at, vision_config={"image_size": 4096, "patch_size": 8}),
        r"image_size 4096 has more than 64 patches of 8 a side",
    ),
    "an image encoder alone": (
        lambda at: change_tensors(
            at, lambda all_: [all_.pop(name) for name in list(all_) if name.startswith("text_")]
        ),
        r"has no tensors text_model\.\*; prompt fit needs a whole CLIP",
    ),
    "one weight missing": (
        lambda at: change_tensors(at, lambda all_: all_.pop("text_model.final_layer_norm.bias")),
        r"tensors are missing",
    ),
    "one weight renamed": (
        lambda at: change_tensors(
            at, lambda all_: all_.update({"text_model.x": all_.pop("text_model.final_layer_norm.bias")})
        ),
        r"has 1 missing tensors, first text_model\.final_layer_norm\.bias",
    ),
    "NaN": (
        lambda at: change_tensors(at, lambda all_: all_["text_projection.weight"].fill_(torch.nan)),
        r"text_projection\.weight holds NaN or infinite values; download it again",
    ),
    "whole numbers": (
        lambda at: change_tensors(
            at, lambda all_: all_.update({"visual_projection.weight": torch.ones(24, 32, dtype=torch.int8)})
        ),
        r"visual_projection\.weight is torch\.int8",
    ),
    "fewer words than the tokenizer": (
        lambda at: change_tensors(
            at,
            lambda all_: all_.update(
                {
                    "text_model.embeddings.token_embedding.weight": all_[
                        "text_model.embeddings.token_embedding.weight"
                    ][:49000].clone()
                }
            ),
        ),
        r"the tokenizer has 49408 tokens and the model 49000",
    ),
    "a pixel format that divides by zero": (
        lambda at: (at / "preprocessor_config.json").write_text('{"image_std": [0, 1, 1]}'),
        r"preprocessor_config\.json: image_std .* divides by zero",
    ),
    "no vocabulary": (
        lambda at: (at / "vocab.json").unlink(),
        r"clip has no tokenizer: put vocab\.json and merges\.txt, or tokenizer\.json",
    ),
    "no merges": (lambda at: (at / "merges.txt").unlink(), r"clip has no tokenizer: put vocab\.json"),
    "vocabulary is a pointer": (
        lambda at: (at / "vocab.json").write_text(LFS),
        r"vocab\.json is a Git LFS pointer",
    ),
    "merges are a pointer": (
        lambda at: (at / "merges.txt").write_text(LFS),
        r"merges\.txt is a Git LFS pointer",
    ),
    "merges are not text": (
        lambda at: (at / "merges.txt").write_bytes(b"\xff\xfe\x00"),
        r"merges\.txt is not UTF-8 text .*download it again",
    ),
    "merges are empty": (lambda at: (at / "merges.txt").write_text(""), r"merges\.txt holds no merges"),
    "another vocabulary": (
        lambda at: (at / "vocab.json").write_text('{"a": 0}'),
        r"vocab\.json is not the vocabulary of a CLIP",
    ),
    "numbers with gaps": (
        lambda at: (at / "vocab.json").write_text('{"<|startoftext|>": 0, "<|endoftext|>": 4294967296}'),
        r"vocab\.json: its tokens are not numbered from 0 to 1",
    ),
    "numbers that are none": (
        lambda at: (at / "vocab.json").write_text('{"<|startoftext|>": [], "<|endoftext|>": 1}'),
        r"vocab\.json: its tokens are not numbered",
    ),
    "a vocabulary without end": (
        lambda at: (at / "vocab.json").write_bytes(b" " * (1 << 25)),
        r"vocab\.json is larger than any file of its kind",
    ),
    "merges without end": (
        lambda at: (at / "merges.txt").write_bytes(b" " * (1 << 25)),
        r"merges\.txt is larger than any file of its kind",
    ),
    "a tokenizer of another kind": (
        lambda at: (
            (at / "vocab.json").unlink(),
            (at / "tokenizer.json").write_text('{"model": {"vocab": [["a", 1]], "merges": 3}}'),
        ),
        r"tokenizer\.json is not the vocabulary of a CLIP",
    ),
    "merges that are no pairs": (
        lambda at: (
            (at / "vocab.json").unlink(),
            (at / "tokenizer.json").write_text(
                '{"model": {"vocab": {"<|startoftext|>": 0, "<|endoftext|>": 1}, "merges": [[["a"], 1]]}}'
            ),
        ),
        r"tokenizer\.json: .* is not two tokens of the vocabulary",
    ),
}


@pytest.mark.parametrize("what", SPOILED)
def test_a_bad_file_is_refused_by_name(copied, what):
    spoil, message = SPOILED[what]
    spoil(copied)
    with pytest.raises(EncoderFileError, match=message):
        load_prompt_fit(copied)


def test_a_pickle_is_not_read(copied):
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    with pytest.raises(EncoderFileError, match=r"model\.safetensors does not exist"):
        load_prompt_fit(copied)
    with pytest.raises(EncoderFileError, match=r"is not a \.safetensors file; no other format is loaded"):
        load_prompt_fit(copied / "pytorch_model.bin")
