"""Loading checkpoints: good ones equal transformers' own model, bad ones are refused by name."""

import json
import pickle
import shutil
import struct
import tracemalloc

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersForImageClassification,
    Dinov2WithRegistersModel,
)

from jepa_core import Encoder, EncoderFileError, load_encoder
from jepa_core.encoder import PLAIN_ATTENTION
from tests.core.conftest import kept_for_backward

PROJECTION = "embeddings.patch_embeddings.projection.weight"


@pytest.fixture
def folder(save_model, tmp_path):
    """A folder with a good checkpoint, to be spoiled."""
    target = tmp_path / "spoiled"
    shutil.copytree(save_model(), target)
    return target


@pytest.fixture
def edit(folder):
    """Return a function that rewrites the tensors or the config of `folder`."""

    def change(tensors=None, **config):
        file = folder / "model.safetensors"
        if tensors is not None:
            content = load_file(file)
            tensors(content)
            save_file(content, file, metadata={"format": "pt"})
        if config:
            settings = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(settings | config))
        return folder

    return change


def own_output(folder, x, model_class=Dinov2Model):
    model = model_class.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(pixel_values=x).last_hidden_state[:, 0]


@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize(
    ("family", "model_class"),
    [("dinov2", Dinov2Model), ("dinov2_with_registers", Dinov2WithRegistersModel)],
)
def test_output_equals_the_library_own_model(save_model, images, family, model_class, swiglu):
    folder = save_model(family, use_swiglu_ffn=swiglu, num_attention_heads=4)
    expected = own_output(folder, images, model_class)
    for path in (folder, str(folder), folder / "model.safetensors"):
        encoder = load_encoder(path, dtype=torch.float64, image_size=28)
        assert (encoder.embed_dim, encoder.image_size, encoder.architecture.model_type) == (32, 28, family)
        torch.testing.assert_close(encoder(images), expected, rtol=1e-12, atol=1e-12)
    single = load_encoder(folder, image_size=28)
    assert single.weight.dtype == torch.float32
    torch.testing.assert_close(single(images), expected.float(), rtol=0, atol=1e-3)


def test_the_encoder_is_frozen_and_in_evaluation_mode(save_model):
    encoder = load_encoder(save_model(), image_size=28)
    assert not encoder.model.training
    assert not any(weight.requires_grad for weight in encoder.parameters())


@pytest.mark.parametrize("trained_at", [28, 42, 70])
@pytest.mark.parametrize("used_at", [28, 56])
def test_another_image_size_interpolates_the_position_table(save_model, trained_at, used_at):
    folder = save_model(image_size=trained_at)
    x = torch.randn(2, 3, used_at, used_at, dtype=torch.float64)
    encoder = load_encoder(folder, dtype=torch.float64, image_size=used_at)
    assert encoder.model.embeddings.position_embeddings.shape[1] == (trained_at // 14) ** 2 + 1
    torch.testing.assert_close(encoder(x), own_output(folder, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_checkpoints_of_any_precision_are_widened(edit, images, dtype):
    folder = edit(lambda tensors: tensors.update({name: value.to(dtype) for name, value in tensors.items()}))
    encoder = load_encoder(folder, image_size=28)
    assert {weight.dtype for weight in encoder.parameters()} == {torch.float32}
    stored = load_file(folder / "model.safetensors")
    assert stored[PROJECTION].dtype == dtype
    assert torch.equal(encoder.model.layernorm.bias, stored["layernorm.bias"].float())
    expected = own_output(folder, images)  # reads the same rounded weights
    torch.testing.assert_close(encoder(images), expected.float(), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("family", "model_class"),
    [
        ("dinov2", Dinov2ForImageClassification),
        ("dinov2_with_registers", Dinov2WithRegistersForImageClassification),
    ],
)
def test_a_classifier_is_loaded_without_its_head(save_model, images, tmp_path, family, model_class):
    plain = save_model(family)
    model_class.from_pretrained(plain).save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors")
    assert "classifier.weight" in names
    assert f"{family}.layernorm.weight" in names
    expected = load_encoder(plain, dtype=torch.float64, image_size=28)(images)
    encoder = load_encoder(tmp_path, dtype=torch.float64, image_size=28)
    assert torch.equal(encoder(images), expected)


def test_a_mask_token_may_be_missing(edit, images):
    folder = edit()
    expected = load_encoder(folder, image_size=28)(images)
    edit(lambda tensors: tensors.pop("embeddings.mask_token"))
    assert torch.equal(load_encoder(folder, image_size=28)(images), expected)


def test_without_a_config_the_heads_are_64_wide(save_model, images):
    folder = save_model(hidden_size=128, num_attention_heads=2)
    expected = load_encoder(folder, dtype=torch.float64, image_size=28)(images)
    (folder / "config.json").unlink()
    encoder = load_encoder(folder, dtype=torch.float64, image_size=28)
    assert torch.equal(encoder(images), expected)


def test_what_tensors_cannot_say_comes_from_the_config(edit, images):
    folder = edit(num_attention_heads=8, layer_norm_eps=0.5)
    found = load_encoder(folder, dtype=torch.float64, image_size=28)(images)
    torch.testing.assert_close(found, own_output(folder, images), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "settings",
    [{"hidden_act": "relu"}, {"layer_norm_eps": "small"}, {"layer_norm_eps": -1}, {"layer_norm_eps": None}],
)
def test_an_architecture_that_is_not_supported_is_refused(edit, settings):
    ((name, value),) = settings.items()
    with pytest.raises(EncoderFileError, match=f"config.json.*{name}.*{value}"):
        load_encoder(edit(**settings), image_size=28)


def test_loading_under_inference_mode_gives_normal_weights_and_moves_no_random_state(save_model, images):
    folder = save_model()
    before = torch.get_rng_state()
    with torch.inference_mode():
        encoder = load_encoder(folder, image_size=28)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(weight.is_inference() for weight in encoder.parameters())
    x = images.float().requires_grad_()
    encoder(x).sum().backward()
    assert x.grad.abs().max() > 0


def test_evaluation_is_never_below_float32(save_model, images):
    encoder = load_encoder(save_model(), image_size=28)
    expected = encoder(images.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder(images.float()), expected)
    assert encoder(images.half()).dtype == torch.float32


@pytest.mark.parametrize(("width", "size"), [(32, 224), (64, 112), (128, 28)])
def test_estimated_activations_are_of_the_right_size(save_model, width, size):
    encoder = load_encoder(save_model(num_hidden_layers=4, hidden_size=width), image_size=size)
    image = torch.zeros(1, 3, size, size)
    with encoder.fused_attention():
        fused, kept = kept_for_backward(encoder, image)
    # no less, so that a chunk fits; the excess is left for what the backward passes hold
    assert 0.9 * kept < encoder.activation_bytes < 3 * kept
    plain, kept = kept_for_backward(encoder, image)
    assert kept / 4 < encoder.layer_bytes < 3 * kept / 4
    torch.testing.assert_close(fused, plain)
    assert encoder.model.config._attn_implementation == PLAIN_ATTENTION


# Files that are refused


def refused(path, *words, **options):
    """Load, and check that the refusal is EncoderFileError and names everything in `words`."""
    with pytest.raises(EncoderFileError) as caught:
        load_encoder(path, image_size=28, **options)
    for word in words:
        assert str(word) in str(caught.value)


def test_missing_files(tmp_path):
    refused(tmp_path / "none.safetensors", tmp_path / "none.safetensors", "does not exist")
    refused(tmp_path, tmp_path / "model.safetensors", "does not exist")


@pytest.mark.parametrize("keep", [0, 4, 100, 5000, -1])
def test_truncated_file(folder, keep):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refused(folder, file, "damaged")


def test_random_bytes(folder):
    file = folder / "model.safetensors"
    for seed in range(3):
        noise = torch.randint(
            0, 256, (5000,), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
        )
        file.write_bytes(noise.numpy().tobytes())
        refused(folder, file, "damaged")


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was run",))


@pytest.mark.parametrize("zipped", [False, True])
def test_a_pickle_is_refused_and_not_run(folder, zipped):
    file = folder / "model.safetensors"
    if zipped:
        torch.save({PROJECTION: Bomb()}, file)
    else:
        file.write_bytes(pickle.dumps({PROJECTION: Bomb()}))
    refused(folder, file, "as torch.save writes")
    other = file.rename(folder / "pytorch_model.bin")
    refused(other, other, "not a .safetensors file")


def test_another_family_of_tensors(tmp_path):
    file = tmp_path / "clip.safetensors"
    save_file({"vision_model.embeddings.patch_embedding.weight": torch.zeros(8, 3, 14, 14)}, file)
    refused(file, file, "not a DINOv2 encoder", "vision_model.embeddings.patch_embedding.weight")
    save_file({}, file)
    refused(file, file, "not a DINOv2 encoder")


@pytest.mark.parametrize("stated", ["clip", "dinov2_with_registers", ["dinov2"], 3, None])
def test_a_config_of_another_model_type(edit, stated):
    folder = edit(model_type=stated)
    kind = {"clip": "CLIP", "dinov2_with_registers": "DINOv2 with registers"}.get(str(stated), repr(stated))
    refused(folder, folder / "config.json", kind)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b'"dinov2"', b"\xff\xfe\x00", b"[" * 200_000])
def test_a_config_that_is_not_a_json_object(folder, content):
    (folder / "config.json").write_bytes(content)
    refused(folder, folder / "config.json")


def test_a_config_of_megabytes_is_not_read(folder):
    (folder / "config.json").write_bytes(b" " * (2 << 20))
    refused(folder, folder / "config.json", "larger")


@pytest.mark.parametrize("heads", [0, -2, 5, 10**12, "2", 2.0, None, [2]])
def test_an_impossible_number_of_heads(edit, heads):
    folder = edit(num_attention_heads=heads)
    refused(folder, folder, "num_attention_heads", repr(heads))


def test_sizes_that_a_config_claims_allocate_nothing(edit, images):
    expected = load_encoder(edit(), image_size=28)(images)
    folder = edit(
        hidden_size=2**40,
        num_hidden_layers=10**9,
        image_size=14 * 10**6,
        mlp_ratio=10**9,
        num_register_tokens=10**12,
    )
    tracemalloc.start()
    encoder = load_encoder(folder, image_size=28)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50 << 20
    assert torch.equal(encoder(images), expected)


def test_sizes_that_a_header_claims_allocate_nothing(tmp_path):
    file = tmp_path / "huge.safetensors"
    claim = {
        PROJECTION: {"dtype": "F32", "shape": [2**20, 3, 2**10, 2**10], "data_offsets": [0, 2**43 * 3 // 2]}
    }
    header = json.dumps(claim).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    refused(file, file, "damaged")


NAMES = [
    "embeddings.cls_token",
    "embeddings.position_embeddings",
    "embeddings.patch_embeddings.projection.bias",
    "encoder.layer.0.attention.attention.query.weight",
    "encoder.layer.0.mlp.fc1.weight",
    "encoder.layer.1.mlp.fc2.bias",
    "encoder.layer.1.layer_scale1.lambda1",
    "layernorm.weight",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_tensor(edit, name):
    folder = edit(lambda tensors: tensors.pop(name))
    refused(folder, folder / "model.safetensors")


@pytest.mark.parametrize("name", [*NAMES, PROJECTION])
@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: tensor[:0],
        lambda tensor: tensor.flatten() if tensor.ndim > 1 else tensor[:, None],
        lambda tensor: torch.cat([tensor, tensor], -1),
        lambda tensor: torch.cat([tensor, tensor]),
        lambda tensor: tensor[None],
        lambda tensor: tensor.new_zeros(()),
        lambda tensor: tensor.new_zeros([0] * tensor.ndim),
    ],
    ids=["empty", "reshaped", "longer", "twice", "deeper", "scalar", "zeros"],
)
def test_a_misshapen_tensor(edit, name, change):
    def misshape(tensors):
        original = tensors[name]
        tensors[name] = change(original).contiguous()

    folder = edit(misshape)
    refused(folder, folder / "model.safetensors")


def test_a_small_file_that_asks_for_a_large_model_allocates_nothing(edit):
    width = 4096  # the layers would take 1.6 GiB

    def widen(tensors):
        tensors[PROJECTION] = torch.zeros(width, 3, 14, 14)
        tensors["embeddings.position_embeddings"] = torch.zeros(1, 2, width)
        tensors["encoder.layer.0.mlp.fc1.weight"] = torch.zeros(width, 1)

    folder = edit(widen)
    refused(folder, folder / "model.safetensors", "weights")


@pytest.mark.parametrize("shape", [(32, 3, 0, 0), (0, 3, 14, 14), (32, 4, 14, 14), (32, 3, 14, 7), (32, 3)])
def test_a_projection_of_an_impossible_shape(edit, shape):
    folder = edit(lambda tensors: tensors.update({PROJECTION: torch.zeros(shape)}))
    refused(folder, folder / "model.safetensors")


@pytest.mark.parametrize("layers", [[0], [0, 2], [1]])
def test_layers_that_are_not_numbered_from_zero(edit, layers):
    def drop(tensors):
        for name in list(tensors):
            if name.startswith("encoder.layer.1."):
                tensor = tensors.pop(name)
                for layer in layers:
                    tensors[name.replace("layer.1.", f"layer.{layer}.")] = tensor.clone()
        if 0 not in layers:
            for name in [name for name in tensors if name.startswith("encoder.layer.0.")]:
                del tensors[name]

    folder = edit(drop)
    if layers == [0]:
        load_encoder(folder, image_size=28)  # one layer is a model
    else:
        refused(folder, folder / "model.safetensors")


def test_tensors_of_whole_numbers_are_refused(edit):
    folder = edit(lambda tensors: tensors.update({PROJECTION: tensors[PROJECTION].to(torch.int8)}))
    refused(folder, folder / "model.safetensors", PROJECTION, "int8")


# Arguments that are refused


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_a_dtype_below_float32(save_model, dtype):
    with pytest.raises(ValueError, match=str(dtype)):
        load_encoder(save_model(), dtype=dtype, image_size=28)


@pytest.mark.parametrize("image_size", [0, -14, 13, 27, 225])
def test_an_image_size_that_is_not_a_multiple_of_the_patch(save_model, image_size):
    with pytest.raises(ValueError, match=f"14.*{image_size}"):
        load_encoder(save_model(), image_size=image_size)


def test_the_default_image_size_is_that_of_the_paper(save_model):
    assert load_encoder(save_model()).image_size == 224


def test_the_class_is_public(save_model):
    assert isinstance(load_encoder(save_model(), image_size=28), Encoder)
