"""Every architecture, on a small random model of its transformers class: score, gradient, pixels, files."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from jepa_core import Encoder, EncoderFileError, RarityGradient, architectures, jepa_score, load_encoder
from jepa_core.architectures import ARCHITECTURES, Architecture, known_model_types
from jepa_core.range_finder import numerical_rank_floor
from jepa_core.score import log_sum
from tests.core.conftest import SMALL, kept_for_backward, random_model

KINDS = list(ARCHITECTURES)
CONTAINERS = [name for name, row in ARCHITECTURES.items() if row.container]
K = 4


def patch(kind: str) -> int:
    return int(SMALL[kind]["patch_size"])  # type: ignore[call-overload]


def small_images(kind: str, count: int = 1, side: int = 2) -> Tensor:
    """Preprocessed random images of side x side patches, float64."""
    size = side * patch(kind)
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, 3, size, size, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="module")
def folders(save_model) -> dict[str, Path]:
    return {kind: save_model(kind) for kind in KINDS}


@pytest.fixture(scope="module")
def encoders(folders) -> dict[str, Encoder]:
    """In float64, of images of two by two patches."""
    return {
        kind: load_encoder(folders[kind], dtype=torch.float64, image_size=2 * patch(kind)) for kind in KINDS
    }


@pytest.fixture
def folder(folders, tmp_path):
    """Return a function that copies the checkpoint of a kind into a folder, to be spoiled."""

    def copy(kind: str) -> Path:
        return Path(shutil.copytree(folders[kind], tmp_path / kind))

    return copy


def plainly_embedded(kind: str, model: Any, x: Tensor) -> Tensor:
    """The embedding as docs/encoders.md defines it."""
    if kind.startswith("dinov"):
        return model(pixel_values=x).last_hidden_state[:, 0]
    if kind == "ijepa":
        return model(pixel_values=x, interpolate_pos_encoding=True)[0].mean(dim=1)
    if kind == "vjepa2":
        return model.get_vision_features(x.unsqueeze(1).repeat(1, 2, 1, 1, 1)).mean(dim=1)
    output = model(pixel_values=x, interpolate_pos_encoding=True)
    return output.pooler_output if kind == "siglip_vision_model" else output.image_embeds


# --- embeddings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_embedding_is_that_of_the_library_s_own_model(folders, kind, side):
    """At its training size and at another one. Some attention layers in transformers round to float32."""
    row, x = ARCHITECTURES[kind], small_images(kind, count=2, side=side)
    size = side * patch(kind)
    changes = {"crop_size": size} if kind == "vjepa2" else {}
    model_class = getattr(transformers, row.model_class)
    own = model_class.from_pretrained(folders[kind], dtype=torch.float64, **changes).eval()
    with torch.no_grad():
        expected = plainly_embedded(kind, own, x)
    encoder = load_encoder(folders[kind], dtype=torch.float64, image_size=size)
    assert encoder.architecture is row
    assert expected.shape == (2, encoder.embed_dim)
    torch.testing.assert_close(encoder(x), expected, rtol=0, atol=1e-5)
    single = load_encoder(folders[kind], image_size=size)
    assert single.weight.dtype == torch.float32
    torch.testing.assert_close(single(x).double(), encoder(x), rtol=0, atol=1e-3)
    with single.fused_attention():
        fused = single(x)
    torch.testing.assert_close(fused, single(x), rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_one_encoder_at_two_sizes_shares_its_weights(folders, kind):
    size = patch(kind)
    encoder = load_encoder(folders[kind], dtype=torch.float64, image_size=2 * size)
    larger = encoder.at_size(3 * size)
    assert (encoder.image_size, larger.image_size) == (2 * size, 3 * size)
    assert {id(weight) for weight in larger.parameters()} == {id(weight) for weight in encoder.parameters()}
    fresh = load_encoder(folders[kind], dtype=torch.float64, image_size=3 * size)
    for _ in range(2):  # in turn
        small, large = small_images(kind), small_images(kind, side=3)
        assert torch.equal(larger(large), fresh(large))
        assert torch.equal(encoder(small), fresh.at_size(2 * size)(small))
    with pytest.raises(ValueError, match=f"multiple of the patch size {size}, got {size + 1}"):
        encoder.at_size(size + 1)


@pytest.mark.parametrize("kind", KINDS)
def test_loading_moves_no_random_state_and_freezes(folders, kind):
    before = torch.get_rng_state()
    with torch.inference_mode():
        encoder = load_encoder(folders[kind], image_size=2 * patch(kind))
    assert torch.equal(torch.get_rng_state(), before)
    assert not encoder.model.training
    assert not any(weight.requires_grad or weight.is_inference() for weight in encoder.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_embedding_under_inference_mode_leaves_nothing_that_cannot_be_differentiated(encoders, kind):
    """Some architectures cache the positions of patches."""
    encoder, x = encoders[kind], small_images(kind)
    with torch.inference_mode():
        encoder(x)
    scores = jepa_score(encoder, x)
    with torch.inference_mode():
        assert torch.equal(jepa_score(encoder, x), scores)


@pytest.mark.parametrize("kind", KINDS)
def test_estimated_activations_are_of_the_right_size(save_model, kind):
    size = 16 * patch(kind)
    encoder = load_encoder(save_model(kind, num_hidden_layers=4, hidden_size=64), image_size=size)
    image = torch.zeros(1, 3, size, size)
    with encoder.fused_attention():
        fused, kept = kept_for_backward(encoder, image)
    assert 0.9 * kept < encoder.activation_bytes < 4 * kept
    eager, kept = kept_for_backward(encoder, image)
    assert 0.9 * kept / 4 < encoder.layer_bytes < 4 * kept / 4
    torch.testing.assert_close(fused, eager, rtol=1e-3, atol=1e-3)


# --- score and gradient -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_singular_values_that_are_zero_by_construction(encoders, dense, kind, side):
    """As many as the table says, at every image; all others are far above rounding noise.

    LayerNorm's epsilon keeps the fixed length from being quite fixed: that direction is null to a millionth.
    """
    encoder = encoders[kind].at_size(side * patch(kind))
    row = ARCHITECTURES[kind]
    for image in small_images(kind, count=2, side=side):
        u, s, _ = torch.linalg.svd(dense(encoder, image), full_matrices=False)
        null = s < numerical_rank_floor(s, encoder.embed_dim)
        assert null.sum() == row.null_directions
        assert s[~null].min() > 10 * numerical_rank_floor(s, encoder.embed_dim)
        if row.null_directions:
            # the LayerNorm's outputs over gamma have no mean
            gamma = next(weight for name, weight in norms(encoder) if name.endswith("weight"))
            direction = (1 / gamma) / (1 / gamma).norm()
            left = u[:, null]
            torch.testing.assert_close(left @ (left.T @ direction), direction, rtol=0, atol=1e-6)
            assert (direction @ dense(encoder, image)).norm() < 1e-12 * s[0]


def norms(encoder: Encoder) -> list[tuple[str, Tensor]]:
    """The final LayerNorm's weights, in any architecture whose embedding is made of its outputs."""
    return [
        (name, weight)
        for name, weight in encoder.model.named_parameters()
        if name.startswith(("layernorm.", "norm.", "encoder.layernorm."))
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_the_score_is_the_dense_jacobian_s(encoders, folders, dense, kind):
    """Exact in float64; float32 agrees, since values that are zero by construction count as eps in both."""
    encoder, x = encoders[kind], small_images(kind, count=2)
    s = torch.stack([torch.linalg.svdvals(dense(encoder, image)) for image in x])
    # The reference leaves out as many as the table says and counts each as eps.
    real = s[:, : encoder.embed_dim - ARCHITECTURES[kind].null_directions]
    expected = real.log().sum(1) + ARCHITECTURES[kind].null_directions * torch.tensor(1e-6).double().log()
    torch.testing.assert_close(jepa_score(encoder, x), expected, rtol=1e-9, atol=1e-7)
    single = load_encoder(folders[kind], image_size=encoder.image_size)
    torch.testing.assert_close(jepa_score(single, x.float()), expected, rtol=0, atol=2e-2)


def exact_gradient(encoder: Encoder, image: Tensor) -> Tensor:
    """Gradient of the sum of the logs of the top K singular values, by a double backward pass."""
    leaf = image.clone().requires_grad_()
    rows = torch.autograd.functional.jacobian(lambda x: encoder(x[None])[0], leaf, create_graph=True)
    (gradient,) = torch.autograd.grad(torch.linalg.svdvals(rows.flatten(1))[:K].log().sum(), leaf)
    return gradient


def cosine(a: Tensor, b: Tensor) -> float:
    return torch.nn.functional.cosine_similarity(a.double().flatten(), b.double().flatten(), 0).item()


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_the_dense_jacobian_s_singular_values(encoders, folders, kind):
    encoder, x = encoders[kind], small_images(kind)
    exact = exact_gradient(encoder, x[0])
    converged = RarityGradient(k=K, oversample=8, power_iterations=8)(encoder, x)
    torch.testing.assert_close(converged.grad[0], exact, rtol=0, atol=2e-5 * exact.abs().max().item())
    single = load_encoder(folders[kind], image_size=encoder.image_size)
    settings = {"k": K, "oversample": 8, "power_iterations": 4}
    assert cosine(RarityGradient(**settings)(single, x.float()).grad[0], exact) > 0.999
    half = RarityGradient(**settings, half=True)(single, x.float()).grad[0]
    assert cosine(half, exact) > 0.9  # full precision where the device has no fast bfloat16


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_takes_no_double_backward(encoders, kind, monkeypatch):
    """Backward passes keep no graph, so fused attention works for every architecture."""
    asked = []
    grad = torch.autograd.grad

    def recorded(*args: Any, **kwargs: Any) -> Any:
        asked.append(kwargs.get("create_graph", False))
        return grad(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", recorded)
    found = RarityGradient(k=K, oversample=2, power_iterations=1)(encoders[kind], small_images(kind))
    assert found.grad.isfinite().all()
    assert asked
    assert not any(asked)


# --- pixels -------------------------------------------------------------------------------------------------------

# transformers' own processor as the checkpoints configure it: class, settings, how the sides are fitted.
OWN_MEAN = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
PROCESSORS: dict[str, tuple[str, dict[str, Any], str]] = {
    "dinov3_vit": ("DINOv3ViTImageProcessor", {}, "squash"),
    "clip_vision_model": ("CLIPImageProcessor", {}, "crop"),
    "metaclip_2_vision_model": ("CLIPImageProcessor", {}, "crop"),
    "siglip_vision_model": ("SiglipImageProcessor", {"resample": 2}, "squash"),
    # with the training's mean and deviation, see architectures.py
    "ijepa": ("ViTImageProcessor", OWN_MEAN, "squash"),
    "vjepa2": ("VJEPA2VideoProcessor", {}, "crop"),
    # the paper's resize; the published one is bicubic and then cuts 224 of 256 pixels
    "dinov2": ("BitImageProcessor", {"resample": 2, **OWN_MEAN}, "crop"),
    "dinov2_with_registers": ("BitImageProcessor", {"resample": 2, **OWN_MEAN}, "crop"),
}


def photo_like(height: int, width: int) -> Tensor:
    """Soft blobs and a few hard edges, (height, width, 3) in multiples of 1/255, as in an image file."""
    y, x = torch.meshgrid(torch.linspace(0, 9, height), torch.linspace(0, 9, width), indexing="ij")
    channels = [(torch.sin(x * a) * torch.cos(y * b) + 1) / 2 for a, b in ((1, 0.7), (0.4, 1.3), (1.9, 0.2))]
    image = torch.stack(channels, -1)
    image[height // 3 : height // 2, width // 4 : width // 2] = torch.tensor([1.0, 0.0, 0.5])
    return (image * 255).round() / 255


@pytest.mark.parametrize(("height", "width"), [(160, 160), (150, 230)])
@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_those_of_the_library_s_processor(encoders, kind, height, width):
    size = 8 * patch(kind)
    encoder = encoders[kind].at_size(size)
    name, settings, fit = PROCESSORS[kind]
    sides = {"shortest_edge": size} if fit == "crop" else {"height": size, "width": size}
    processor = getattr(transformers, name)(
        **settings, size=sides, crop_size={"height": size, "width": size}, do_convert_rgb=False
    )
    image = photo_like(height, width)
    bytes_ = (image * 255).round().byte()
    if kind == "vjepa2":
        # what it makes of its size would cut the edges off
        clip = processor(bytes_.movedim(-1, 0)[None], size=sides, return_tensors="pt")
        expected = clip["pixel_values_videos"][0, 0]
    else:
        picture = Image.fromarray(bytes_.numpy())
        expected = processor(picture, return_tensors="pt")["pixel_values"][0]
    found = encoder.preprocess(image[None], fit=fit)[0]
    assert found.shape == expected.shape
    # It rounds to bytes on the way and may cut a shrunken picture half a pixel beside ours.
    step = 1 / 255 / min(encoder.pixels.std)
    difference = (found - expected).abs()
    assert difference.median() < step
    if height == width:
        assert difference.max() < 4 * step


def test_bicubic_pixels_stay_within_a_picture_s_range_and_are_differentiable(encoders):
    encoder = encoders["clip_vision_model"]
    image = torch.zeros(1, 40, 40, 3, dtype=torch.float64)
    image[:, 13:27, 13:27] = 1
    x = encoder.preprocess(image)
    mean, std = (image.new_tensor(part)[:, None, None] for part in encoder.pixels[:2])
    pixels = x * std + mean
    assert pixels.min() >= -1e-12
    assert pixels.max() <= 1 + 1e-12
    soft = (0.3 + 0.4 * image).requires_grad_()  # away from the ends of the range
    assert torch.autograd.gradcheck(lambda y: encoder.preprocess(y).sum((-1, -2)), soft[:, :12, :9], eps=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_preprocessor_file_says_how_pixels_are_normalised(folder, kind):
    path = folder(kind)
    size = 2 * patch(kind)
    usual = load_encoder(path, image_size=size).pixels
    stated = {"image_mean": [0.43, 0.411, 0.296], "image_std": [0.213, 0.156, 0.143], "resample": 3}
    (path / "preprocessor_config.json").write_text(json.dumps(stated))
    found = load_encoder(path, image_size=size).pixels
    if kind.startswith("dinov2") or kind == "ijepa":
        assert found == usual
    else:
        assert found == (tuple(stated["image_mean"]), tuple(stated["image_std"]), "bicubic")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_mean", [0.5, 0.5]),
        ("image_mean", "0.5"),
        ("image_mean", [0.5, 0.5, float("nan")]),
        ("image_mean", [127, 127, 127]),
        ("image_std", [0, 0.2, 0.2]),
        ("image_std", [True, 0.2, 0.2]),
        ("image_std", None),
        ("resample", 1),
        ("resample", [2]),
        ("resample", "bicubic"),
    ],
)
def test_a_preprocessor_file_that_makes_no_sense_is_refused(folder, name, value):
    path = folder("siglip_vision_model")
    (path / "preprocessor_config.json").write_text(json.dumps({name: value}))
    with pytest.raises(EncoderFileError, match=rf"preprocessor_config\.json: {name}"):
        load_encoder(path, image_size=16)


# --- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_of_any_precision_are_widened(folder, kind, dtype):
    path = folder(kind)
    x = small_images(kind)
    file = path / "model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file)
    encoder = load_encoder(path, dtype=torch.float64, image_size=2 * patch(kind))
    row = ARCHITECTURES[kind]
    own = getattr(transformers, row.model_class).from_pretrained(path, dtype=torch.float64).eval()
    with torch.no_grad():
        torch.testing.assert_close(encoder(x), plainly_embedded(kind, own, x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_single_files_with_a_configuration_of_their_own_share_a_folder(folders, tmp_path, kind):
    """The folder has the config.json of another architecture."""
    for name in (kind, "other"):
        shutil.copy(folders[kind] / "model.safetensors", tmp_path / f"{name}.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    shutil.copy(folders[kind] / "config.json", tmp_path / f"{kind}.json")
    size = 2 * patch(kind)
    x = small_images(kind)
    expected = load_encoder(folders[kind], dtype=torch.float64, image_size=size)(x)
    found = load_encoder(tmp_path / f"{kind}.safetensors", dtype=torch.float64, image_size=size)(x)
    assert torch.equal(found, expected)
    with pytest.raises(
        EncoderFileError, match=r"config\.json says model_type 'bert', which is not supported"
    ):
        load_encoder(tmp_path / "other.safetensors", image_size=size)


def with_text_tower(kind: str) -> Any:
    """A small encoder in its published container, next to a text tower."""
    row = ARCHITECTURES[kind]
    prefix = row.config_class.removesuffix("VisionConfig")
    tower = random_model(kind)
    text = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 50,
    }
    sizes = {"vision_config": tower.config.to_dict(), "text_config": text}
    config = getattr(transformers, f"{prefix}Config")(**sizes)
    config.projection_dim = 24
    whole = getattr(transformers, f"{prefix}Model")(config)
    own = whole.state_dict()
    weights = {
        name if name in own else f"vision_model.{name}": weight for name, weight in tower.state_dict().items()
    }
    missing, unexpected = whole.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(name.startswith(("text", "logit")) for name in missing)
    return whole


@pytest.mark.parametrize("kind", CONTAINERS)
def test_a_model_with_a_text_tower_is_loaded_without_it(encoders, tmp_path, kind):
    whole = with_text_tower(kind)
    whole.save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors")
    assert any(name.startswith("text_model.") for name in names)
    # the names that published files have
    assert "vision_model.embeddings.patch_embedding.weight" in names
    assert "vision_model.encoder.layers.1.self_attn.k_proj.weight" in names
    x = small_images(kind)
    encoder = load_encoder(tmp_path, dtype=torch.float64, image_size=16)
    assert torch.equal(encoder(x), encoders[kind](x))
    held = sum(weight.numel() for weight in encoder.parameters())
    assert held == sum(weight.numel() for weight in encoders[kind].parameters())


def test_the_length_of_the_projection_is_that_of_its_weights(encoders, tmp_path):
    """Some published vision_config entries state a wrong one, and old files hold position ids."""
    with_text_tower("clip_vision_model").save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["vision_config"]["projection_dim"] = 512
    (tmp_path / "config.json").write_text(json.dumps(settings))
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    save_file(tensors, tmp_path / "model.safetensors")
    x = small_images("clip_vision_model")
    encoder = load_encoder(tmp_path, dtype=torch.float64, image_size=16)
    assert torch.equal(encoder(x), encoders["clip_vision_model"](x))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not ARCHITECTURES[kind].signature])
def test_a_missing_configuration(folder, kind):
    path = folder(kind)
    (path / "config.json").unlink()
    with pytest.raises(EncoderFileError, match=r"needs its config\.json beside it, or as model\.json"):
        load_encoder(path, image_size=2 * patch(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_file_and_a_missing_or_misshapen_tensor(folder, kind):
    path = folder(kind)
    file = path / "model.safetensors"
    good = file.read_bytes()
    file.write_bytes(good[: len(good) // 2])
    with pytest.raises(EncoderFileError, match=r"model\.safetensors is damaged"):
        load_encoder(path, image_size=2 * patch(kind))
    file.write_bytes(good)
    tensors = load_file(file)
    row = ARCHITECTURES[kind]
    parts = {name.split(".")[0]: name for name in sorted(tensors) if not name.startswith(row.unneeded)}
    for name in parts.values():
        save_file({key: value for key, value in tensors.items() if key != name}, file)
        with pytest.raises(EncoderFileError, match=r"model\.safetensors"):
            load_encoder(path, image_size=2 * patch(kind))
        save_file(tensors | {name: torch.cat([tensors[name]] * 2, -1)}, file)
        with pytest.raises(EncoderFileError, match=r"model\.safetensors"):
            load_encoder(path, image_size=2 * patch(kind))


@pytest.mark.parametrize("stated", KINDS)
@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_another_family_than_the_configuration_says(folders, tmp_path, kind, stated):
    """Two that cannot be told apart are the same network: CLIP and MetaCLIP 2."""
    if kind == stated:
        pytest.skip("the right family")
    if {kind, stated} == {"clip_vision_model", "metaclip_2_vision_model"}:
        pytest.skip("one and the same network")
    shutil.copy(folders[kind] / "model.safetensors", tmp_path)
    shutil.copy(folders[stated] / "config.json", tmp_path)
    title = ARCHITECTURES[stated].title.replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(EncoderFileError, match=rf"model\.safetensors.* {title} .*"):
        load_encoder(tmp_path, image_size=2 * patch(stated))


@pytest.mark.parametrize(
    "stated", ["siglip2", "dinov3_convnext", "vit", "vjepa2_1", "", "CLIP", ["clip"], {"a": 1}]
)
def test_an_unknown_architecture_is_refused_by_name(folder, stated):
    path = folder("clip_vision_model")
    (path / "config.json").write_text(json.dumps({"model_type": stated}))
    with pytest.raises(EncoderFileError) as caught:
        load_encoder(path, image_size=16)
    assert repr(stated) in str(caught.value)
    for known in known_model_types():
        assert known in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("clip_vision_model", "hidden_act", "relu"),
        ("clip_vision_model", "num_attention_heads", 0),
        ("clip_vision_model", "num_attention_heads", True),
        ("clip_vision_model", "num_attention_heads", 5),
        ("clip_vision_model", "num_hidden_layers", 10**9),
        ("clip_vision_model", "hidden_size", "32"),
        ("clip_vision_model", "patch_size", 1),
        ("siglip_vision_model", "image_size", 10**6),
        ("siglip_vision_model", "layer_norm_eps", float("nan")),
        ("siglip_vision_model", "num_channels", 4),
        ("ijepa", "patch_size", [8, 8]),
        ("ijepa", "qkv_bias", "yes"),
        ("vjepa2", "mlp_ratio", 1e9),
        ("vjepa2", "tubelet_size", 64),
        ("vjepa2", "in_chans", 3.0),
        ("dinov3_vit", "rope_theta", 0),
        ("dinov3_vit", "num_register_tokens", -1),
    ],
)
def test_an_entry_that_is_not_supported_is_named(folder, kind, name, value):
    path = folder(kind)
    settings = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(settings | {name: value}))
    with pytest.raises(EncoderFileError, match=rf"config\.json.*{name}"):
        load_encoder(path, image_size=2 * patch(kind))


@pytest.mark.parametrize("kind", CONTAINERS)
@pytest.mark.parametrize("content", [None, [], "clip", 3])
def test_a_container_without_its_vision_part(folder, kind, content):
    path = folder(kind)
    settings = {"model_type": ARCHITECTURES[kind].container, "vision_config": content}
    (path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(EncoderFileError, match=r"config\.json has no vision_config"):
        load_encoder(path, image_size=16)


def test_a_tower_without_its_projection(tmp_path):
    """CLIPVisionModel alone: the embedding that CLIP is trained for is not in the file."""
    tower = transformers.CLIPVisionModel(random_model("clip_vision_model").config)
    tower.save_pretrained(tmp_path)
    with pytest.raises(EncoderFileError, match=r"visual_projection|patch_embedding"):
        load_encoder(tmp_path, image_size=16)


@pytest.mark.parametrize("kind", KINDS)
def test_a_transformers_that_lacks_the_class_is_named(folders, kind, monkeypatch):
    row = ARCHITECTURES[kind]

    def lacks(self: Architecture, name: str) -> Any:
        found = None if name in (row.model_class, row.config_class) else getattr(transformers, name)
        return found or original(self, "NoSuchClass")

    original = Architecture._of_transformers
    monkeypatch.setattr(Architecture, "_of_transformers", lacks)
    with pytest.raises(EncoderFileError, match=rf"needs transformers {row.since} or newer, .* is installed"):
        load_encoder(folders[kind], image_size=2 * patch(kind))


def test_an_old_transformers_is_refused_with_what_to_do(monkeypatch):
    # the library puts another module in its own place, so the name imported above may be the first one
    monkeypatch.setattr(sys.modules["transformers"], "__version__", "4.50.3")
    file = Path(architectures.__file__)
    spec = importlib.util.spec_from_file_location("jepa_core.old", file)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(
        ImportError, match=r"needs transformers 4\.56 or newer, 4\.50\.3 is installed.*pip install"
    ):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_the_reference_counts_null_directions_as_the_score_does():
    s = torch.tensor([2.0, 1.0, 1e-12], dtype=torch.float64)
    expected = s[:2].log().sum() + torch.tensor(1e-6).double().log()
    torch.testing.assert_close(log_sum(s, 3, 1e-6), expected)


# --- clips --------------------------------------------------------------------------------------------------------

SEES_MOTION = [kind for kind, row in ARCHITECTURES.items() if row.embed_clip]


def small_clips(kind: str, frames: int) -> Tensor:
    """Two preprocessed random clips of `frames` frames of two by two patches, float64."""
    size = 2 * patch(kind)
    generator = torch.Generator().manual_seed(4)
    return torch.randn(2, frames, 3, size, size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("frames", [2, 6])
@pytest.mark.parametrize("kind", SEES_MOTION)
def test_clips_are_embedded_as_by_the_library_s_own_model(encoders, folders, kind, frames):
    clips = small_clips(kind, frames)
    row = ARCHITECTURES[kind]
    own = getattr(transformers, row.model_class).from_pretrained(folders[kind], dtype=torch.float64).eval()
    with torch.no_grad():
        expected = own.get_vision_features(clips).mean(1)
    encoder = encoders[kind].of_clips(frames)
    assert encoder.input_shape == (frames, *encoders[kind].input_shape)
    torch.testing.assert_close(encoder(clips), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", SEES_MOTION)
def test_the_last_frame_fills_a_tubelet_and_a_still_clip_is_a_still(encoders, kind):
    clips = small_clips(kind, 3)
    filled = torch.cat([clips, clips[:, -1:]], 1)
    assert torch.equal(encoders[kind].of_clips(3)(clips), encoders[kind].of_clips(4)(filled))
    still = clips[:, :1]
    found = encoders[kind].of_clips(2)(still.expand(-1, 2, -1, -1, -1))
    torch.testing.assert_close(found, encoders[kind](still[:, 0]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", SEES_MOTION)
def test_score_and_gradient_of_a_clip_are_the_dense_jacobian_s(encoders, dense, kind):
    encoder = encoders[kind].of_clips(4)
    clips = small_clips(kind, 4)
    s = torch.linalg.svdvals(dense(encoder, clips[0]))
    null = ARCHITECTURES[kind].null_directions
    expected = s[: len(s) - null].log().sum() + null * torch.tensor(1e-6).double().log()
    torch.testing.assert_close(jepa_score(encoder, clips)[0], expected, rtol=1e-9, atol=1e-7)
    exact = exact_gradient(encoder, clips[0])
    assert exact.abs().amax((1, 2, 3)).min() > 0  # every frame has a say
    found = RarityGradient(k=K, oversample=8, power_iterations=8)(encoder, clips[:1]).grad[0]
    torch.testing.assert_close(found, exact, rtol=0, atol=2e-5 * exact.abs().max().item())


@pytest.mark.parametrize("kind", SEES_MOTION)
def test_clips_are_preprocessed_frame_by_frame(encoders, kind):
    encoder = encoders[kind]
    clips = torch.rand(2, 3, 40, 50, 3, generator=torch.Generator().manual_seed(0))
    found = encoder.of_clips(3).preprocess(clips, fit="crop")
    assert found.shape == (2, 3, 3, encoder.image_size, encoder.image_size)
    for clip, x in zip(clips, found, strict=True):
        assert torch.equal(x, encoder.preprocess(clip, fit="crop"))
    with pytest.raises(ValueError, match=r"clips must be \(batch, 4, height, width, 3\), got \(2, 3, 40"):
        encoder.of_clips(4).preprocess(clips)
    with pytest.raises(ValueError, match=r"x must be \(batch, 4, 3, 16, 16\)"):
        jepa_score(encoder.of_clips(4), found)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in SEES_MOTION])
def test_encoders_of_stills_take_no_clips(encoders, kind):
    with pytest.raises(ValueError, match="takes single images, not clips of 4 frames"):
        encoders[kind].of_clips(4)


@pytest.mark.parametrize("kind", SEES_MOTION)
def test_a_clip_is_estimated_to_keep_what_its_tubelets_do(encoders, kind):
    encoder = encoders[kind]
    assert encoder.of_clips(2).activation_bytes == encoder.activation_bytes
    assert encoder.of_clips(64).activation_bytes > 8 * encoder.activation_bytes
