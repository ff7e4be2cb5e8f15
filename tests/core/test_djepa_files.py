"""D-JEPA's files: written and read again, in the public layout, and hostile ones."""

from __future__ import annotations

import argparse
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from jepa_core.djepa import DJEPAFileError, Tokenizer, load_djepa, save_djepa
from tests.core.conftest import random_djepa

CLASSES = ["cat", "dog", "owl"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.safetensors"
    save_djepa(
        path, random_djepa(channels=16, side=2), CLASSES, tokenizer=Tokenizer(), notes={"training": "none"}
    )
    return path


def rewritten(file: Path, change_header: Any = None, change_tensors: Any = None) -> Path:
    """The file with its header or its tensors changed in place."""
    with safe_open(file, framework="pt") as content:
        header = content.metadata()
    tensors = load_file(file)
    if change_header:
        change_header(header)
    if change_tensors:
        change_tensors(tensors)
    save_file(tensors, file, metadata=header)
    return file


def test_what_was_saved_is_loaded_to_half_precision(file):
    model = random_djepa(channels=16, side=2)
    state = torch.random.get_rng_state()
    loaded = load_djepa(file)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert loaded.class_names == ("cat", "dog", "owl")
    assert loaded.latent_scale == 1
    assert loaded.model.config == model.config
    assert not loaded.model.training
    weights = loaded.model.state_dict()
    for name, value in model.state_dict().items():
        if not name.startswith("projection."):
            torch.testing.assert_close(weights[name], value.half().float(), atol=0, rtol=0)
            assert not weights[name].requires_grad
    assert loaded.tokenizer is not None
    pixels = torch.rand(1, 3, 16, 16) * 2 - 1
    assert loaded.tokenizer.decode(loaded.tokenizer.encode(pixels)).shape == pixels.shape


def test_a_file_without_a_tokenizer_brings_none(tmp_path):
    save_djepa(tmp_path / "bare.safetensors", random_djepa(), CLASSES, latent_scale=0.25)
    loaded = load_djepa(tmp_path / "bare.safetensors")
    assert loaded.tokenizer is None
    assert loaded.latent_scale == 0.25


def set_config(**changes: object) -> Any:
    def change(header: dict[str, str]) -> None:
        header["config"] = json.dumps(json.loads(header["config"]) | changes)

    return change


def put(name: str, value: Tensor) -> Any:
    return lambda tensors: tensors.__setitem__(name, value)


@pytest.mark.parametrize(
    ("header", "tensors", "message"),
    [
        (set_config(width=48), None, "but the sizes in its header make it"),
        (set_config(depth=3), None, "lacks 2[0-9] tensors"),
        (set_config(depth=1), None, "holds 2[0-9] tensors that a D-JEPA of its sizes does not have"),
        (set_config(classes=4), None, "names 3 classes, its sizes say 4"),
        (set_config(width=10**9), None, "width must be a whole number from 1 to 8192"),
        (set_config(__class__="os.system"), None, "its header does not describe a D-JEPA"),
        (lambda h: h.update(config="[" * 100_000), None, "its header does not describe a D-JEPA"),
        (lambda h: h.update(config="7"), None, "its header does not describe a D-JEPA"),
        (lambda h: h.pop("config"), None, "its header does not describe a D-JEPA"),
        (lambda h: h.update(classes='["cat", "cat", "owl"]'), None, "names 2 classes"),
        (lambda h: h.update(classes='["cat", 3, null]'), None, "not a list of names"),
        (lambda h: h.update(classes="{}"), None, "not a list of names"),
        (lambda h: h.update(latent_scale="nan"), None, "latent_scale nan is outside"),
        (lambda h: h.update(latent_scale="x"), None, "its header does not describe a D-JEPA"),
        (lambda h: h.update(format="other"), None, "not a D-JEPA .its format is 'other'"),
        (None, put("head.out.bias", torch.full((32,), torch.nan)), "head.out.bias holds NaN"),
        (None, put("head.out.bias", torch.zeros(32, dtype=torch.int64)), "head.out.bias is torch.int64"),
        (
            None,
            put("head.out.bias", torch.zeros(31)),
            r"shape \(31,\), but the sizes in its header make it \(32,\) in a D-JEPA",
        ),
        (None, put("evil", torch.zeros(1)), "tensors that a D-JEPA of its sizes does not have, first evil"),
        (None, put("empty", torch.zeros(0, 7)), "empty is empty"),
        (None, put("tokenizer.evil", torch.zeros(1)), "tokenizer|does not have, first evil"),
    ],
)
def test_a_hostile_file_is_refused_by_name(file, header, tensors, message):
    with pytest.raises(DJEPAFileError, match=message) as refusal:
        load_djepa(rewritten(file, header, tensors))
    assert str(file) in str(refusal.value)
    assert len(str(refusal.value)) < 800


def test_a_tokenizer_of_other_channels_is_refused(tmp_path):
    save_djepa(tmp_path / "odd.safetensors", random_djepa(channels=5), CLASSES, tokenizer=Tokenizer())
    with pytest.raises(DJEPAFileError, match="16 channels and a model of 5 do not fit together"):
        load_djepa(tmp_path / "odd.safetensors")


def test_a_truncated_a_missing_and_a_pickled_file_are_refused(file):
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(DJEPAFileError, match="damaged"):
        load_djepa(file)
    with pytest.raises(DJEPAFileError, match="does not exist"):
        load_djepa(file.with_name("none.safetensors"))
    pickled = file.with_suffix(".pth")
    torch.save({}, pickled)
    with pytest.raises(DJEPAFileError, match="no other format"):
        load_djepa(pickled)
    file.write_bytes(pickled.read_bytes())
    with pytest.raises(DJEPAFileError, match=r"as torch\.save writes"):
        load_djepa(file)


# --- the layout of the paper's public code ------------------------------------------------------------------------

BLOCK = {
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "attn.qkv.weight": "attn.qkv.weight",
    "attn.qkv.bias": "attn.qkv.bias",
    "attn.q_norm.weight": "attn.q_norm.weight",
    "attn.k_norm.weight": "attn.k_norm.weight",
    "attn.proj.weight": "attn.proj.weight",
    "attn.proj.bias": "attn.proj.bias",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "fc1.weight": "mlp.fc1.weight",
    "fc1.bias": "mlp.fc1.bias",
    "fc2.weight": "mlp.fc2.weight",
    "fc2.bias": "mlp.fc2.bias",
}
HEAD_BLOCK = {
    "norm": "in_ln",
    "fc1": "mlp.0",
    "fc2": "mlp.2",
    "modulation": "adaLN_modulation.1",
}
REST = {
    "context_encoder.embed": "z_proj",
    "context_encoder.embed_norm": "z_proj_ln",
    "context_encoder.norm": "encoder_norm",
    "predictor.embed": "decoder_embed",
    "predictor.norm": "decoder_norm",
    "head.time1": "diffloss.net.time_embed.mlp.0",
    "head.time2": "diffloss.net.time_embed.mlp.2",
    "head.condition": "diffloss.net.cond_embed",
    "head.embed": "diffloss.net.input_proj",
    "head.modulation": "diffloss.net.final_layer.adaLN_modulation.1",
    "head.out": "diffloss.net.final_layer.linear",
}
SINGLE = {
    "context_encoder.buffer": "buffer",
    "context_encoder.position": "encoder_pos_embed_learned",
    "predictor.mask_token": "mask_token",
    "predictor.position": "decoder_pos_embed_learned",
}


def public_layout(model: torch.nn.Module) -> dict[str, Tensor]:
    """A model's tensors under the names of the public code, with the extra tensors that training saves."""
    ours = model.state_dict()
    theirs: dict[str, Tensor] = {}
    for here, there in (("context_encoder", "encoder"), ("predictor", "decoder")):
        for block in range(2):
            for name, public in BLOCK.items():
                theirs[f"{there}_blocks.{block}.{public}"] = ours[f"{here}.blocks.{block}.{name}"]
    for end in ("weight", "bias"):
        for block in range(2):
            for name, public in HEAD_BLOCK.items():
                theirs[f"diffloss.net.res_blocks.{block}.{public}.{end}"] = ours[
                    f"head.blocks.{block}.{name}.{end}"
                ]
        for name, public in REST.items():
            theirs[f"{public}.{end}"] = ours[f"{name}.{end}"]
        theirs[f"jepaloss.net.fc1.{end}"] = ours[f"projection.fc1.{end}"]
    for name, public in SINGLE.items():
        theirs[public] = ours[name]
    classes = ours["context_encoder.classes.weight"]
    theirs["class_emb.weight"], theirs["fake_latent"] = classes[:-1].clone(), classes[-1:].clone()
    return theirs


@pytest.mark.parametrize("prefix", ["", "model."])
def test_the_public_layout_is_loaded(tmp_path, prefix):
    model = random_djepa(channels=16)
    tensors = {prefix + name: value for name, value in public_layout(model).items()}
    if prefix:
        # a checkpoint holds the exponential average too, and that one is wanted
        tensors |= {"model_ema." + name: value for name, value in public_layout(model).items()}
        tensors |= {name: torch.zeros_like(tensors[name]) for name in tensors if name.startswith("model.")}
    save_file(tensors, tmp_path / "public.safetensors")
    loaded = load_djepa(tmp_path / "public.safetensors")
    assert loaded.model.config == model.config
    assert loaded.class_names == ("0", "1", "2")
    assert loaded.latent_scale == 0.2325
    weights = loaded.model.state_dict()
    for name, value in model.state_dict().items():
        if not name.startswith("projection."):
            assert torch.equal(weights[name], value), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("encoder_blocks.0.attn.q_norm.weight"), "without normalised queries and keys"),
        (lambda t: t.pop("fake_latent"), "do not form a model"),
        (put("evil", torch.zeros(1)), "evil, which is not in the layout of the paper's public code"),
        (put("diffloss.net.final_layer.linear.bias", torch.zeros(16)), "flow matching is not supported"),
        (lambda t: t.pop("decoder_norm.bias"), "lacks 1 tensors"),
    ],
)
def test_an_odd_file_of_the_public_layout_is_refused(tmp_path, change, message):
    tensors = public_layout(random_djepa(channels=16))
    change(tensors)
    save_file(tensors, tmp_path / "public.safetensors")
    with pytest.raises(DJEPAFileError, match=message):
        load_djepa(tmp_path / "public.safetensors")


def test_a_public_checkpoint_is_converted(tmp_path):
    from tools.convert_djepa import main

    model = random_djepa(channels=16)
    public = public_layout(model)
    content = {"model": {name: 0 * value for name, value in public.items()}, "model_ema": public, "epoch": 3}
    content["args"] = argparse.Namespace(lr=1e-4)
    torch.save(content, tmp_path / "public.pth")
    main([str(tmp_path / "public.pth"), str(tmp_path / "out.safetensors")])
    weights = load_djepa(tmp_path / "out.safetensors").model.state_dict()
    assert torch.equal(weights["head.out.bias"], model.head.out.bias)
    # what is more than tensors and plain types is not unpickled
    torch.save({"model": public, "evil": Path("x")}, tmp_path / "evil.pth")
    with pytest.raises(pickle.UnpicklingError):
        main([str(tmp_path / "evil.pth"), str(tmp_path / "evil.safetensors")])
    assert not (tmp_path / "evil.safetensors").exists()
    torch.save({"model": {}}, tmp_path / "empty.pth")
    with pytest.raises(DJEPAFileError):
        main([str(tmp_path / "empty.pth"), str(tmp_path / "empty.safetensors")])
    assert not (tmp_path / "empty.safetensors").exists()
