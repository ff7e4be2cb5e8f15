"""What IMAGE, MASK and LATENT links carry is checked the same way for every input of every node."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from comfy_api.latest import io
from jepa_guidance.host.comfy.values import image_message, latent_message, mask_message
from jepa_guidance.nodes import JEPAExtension
from jepa_guidance.nodes.input_checks import USED, is_empty, value_message, with_images

from tests.own_loop import finished

IMAGES = torch.rand(2, 4, 4, 3, generator=torch.Generator().manual_seed(0))
SAMPLES = torch.zeros(2, 4, 4, 4)
BAD_IMAGES = [
    ("a picture", "x must be of type IMAGE, got str"),
    (IMAGES[0], r"x must be (batch, height, width, 3 or 4), got (4, 4, 3)"),
    (IMAGES[..., :1], "got (2, 4, 4, 1)"),
    (IMAGES[:, :0], "got (2, 0, 4, 3)"),
    (IMAGES[:0], "x holds no image; link"),
    (IMAGES.mul(255).byte(), "got uint8; convert them"),
    (IMAGES > 0.5, "got bool; convert them"),
    (IMAGES * 255, "image 0 of the batch has pixels from"),
    (torch.stack([IMAGES[0], IMAGES[1] * 2 - 1.2]), "image 1 of the batch has pixels from -1."),
    (torch.stack([IMAGES[0], IMAGES[1] / 0]), "image 1 of the batch holds NaN or infinite pixels"),
]
BAD_LATENTS = [
    (SAMPLES, "x must be of type LATENT, got Tensor"),
    ({}, "x must be of type LATENT, got dict"),
    ({"samples": SAMPLES[0, 0]}, "x must be (batch, channels, height, width), got (4, 4)"),
    ({"samples": SAMPLES[:, :, :0]}, "got (2, 4, 0, 4)"),
    ({"samples": SAMPLES[:0]}, "x holds no image; link"),
    ({"samples": SAMPLES.int()}, "x must have floating-point values, got int32"),
    ({"samples": SAMPLES, "noise_mask": [1]}, "the noise_mask of x must be of type MASK, got list"),
    ({"samples": SAMPLES, "noise_mask": SAMPLES[:0]}, "the noise_mask of x must be (batch, height, width)"),
    ({"samples": SAMPLES, "noise_mask": SAMPLES[0] + math.nan}, "the noise_mask of x holds NaN"),
]
BAD_MASKS = [
    ("m", "x must be of type MASK, got str"),
    (IMAGES, "x must be (batch, height, width), got (2, 4, 4, 3)"),
    (IMAGES[:0, ..., 0], "got (0, 4, 4)"),
]


@pytest.mark.parametrize(("images", "message"), BAD_IMAGES)
def test_images_that_do_not_fit_are_named_with_the_fix(images, message):
    assert message in image_message("x", images)


@pytest.mark.parametrize(("latent", "message"), BAD_LATENTS)
def test_latents_that_do_not_fit_are_named_with_the_fix(latent, message):
    assert message in latent_message("x", latent)


@pytest.mark.parametrize(("masks", "message"), BAD_MASKS)
def test_masks_that_do_not_fit_are_named_with_the_fix(masks, message):
    assert message in mask_message("x", masks)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_a_bicubic_resize_makes_of_the_hardest_edges_passes(dtype):
    checks = (torch.arange(8)[:, None] // 2 + torch.arange(8) // 2).remainder(2).float()
    images = checks[None, None].expand(1, 3, -1, -1)
    resized = torch.nn.functional.interpolate(images, scale_factor=5.3, mode="bicubic")
    assert resized.max() > 1.1
    assert image_message("x", resized.movedim(1, -1).to(dtype)) is None
    assert image_message("x", torch.cat([IMAGES, IMAGES[..., :1]], -1).to(dtype)) is None


@pytest.mark.parametrize("shape", [(4, 4), (1, 4, 4), (2, 4, 4), (2, 1, 4, 4), (2, 1, 3, 4, 4)])
def test_masks_of_the_hosts_shapes_pass(shape):
    assert latent_message("x", {"samples": SAMPLES, "noise_mask": torch.ones(shape)}) is None


CHECKED: dict[str, tuple[Any, list]] = {
    "IMAGE": (IMAGES, BAD_IMAGES),
    "LATENT": ({"samples": SAMPLES}, BAD_LATENTS),
    "MASK": (IMAGES[..., 0], BAD_MASKS),
}


@pytest.mark.parametrize("kind", CHECKED)
def test_every_input_of_these_types_is_checked_so(kind, models):
    good, bad = CHECKED[kind]
    inputs = [
        entry
        for node in finished(JEPAExtension().get_node_list())
        for entry in node.define_schema().inputs
        if entry.get_io_type() == kind
    ]
    assert inputs
    for entry in inputs:
        assert value_message(entry, good) is None
        for value, message in bad:
            assert message.replace("x ", f"{entry.id} ", 1) in value_message(entry, value)


@pytest.fixture
def models(tmp_path, monkeypatch):
    """Model folders of the pack, which the menus of its nodes list."""
    import folder_paths
    from jepa_guidance.host.comfy.model_folders import register_folders

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", dict(folder_paths.folder_names_and_paths))
    register_folders()


# Of each kind of widget, what a switch node may pass in place of its value.
WRONG: dict[type, Any] = {
    io.Boolean.Input: "false",
    io.Int.Input: "7",
    io.Float.Input: "7",
    io.Combo.Input: "no such choice",
    io.String.Input: 7.5,
}
# The stock sampler takes any.
FREE = {("JEPAGuidedKSampler", "seed"), ("JEPAStrengthStrip", "seed")}


def fitting(entry: Any) -> Any:
    """A value that fits an input, or a stand-in that passes for one."""
    kind = entry.get_io_type()
    if isinstance(entry, io.Combo.Input):
        return entry.options[0]
    if type(entry) in WRONG:
        return "x" if isinstance(entry, io.String.Input) and not entry.default else entry.default
    found = {name: good for name, (good, _) in CHECKED.items()}
    return found[kind] if kind in found else SimpleNamespace(**dict.fromkeys(USED.values(), ()))


def said(node: Any, values: dict[str, Any]) -> str:
    """How a node refuses values, or what else it does with them."""
    if node.GET_SCHEMA().is_input_list:
        values = {name: [value] for name, value in values.items()}
    try:
        node.execute(**values)
    except ValueError as error:
        return str(error)
    except Exception as error:
        return type(error).__name__
    return "nothing"


def test_a_value_of_another_type_is_named_whatever_input_and_node_it_is_for(models, monkeypatch):
    monkeypatch.setattr("folder_paths.get_filename_list", lambda folder: ["there.safetensors"])
    passed = []
    for node in finished(JEPAExtension().get_node_list()):
        schema = node.GET_SCHEMA()
        good = {
            entry.id: fitting(entry) for entry in schema.inputs if not getattr(entry, "force_input", False)
        }
        for entry in schema.inputs:
            wrong = next((one for kind, one in WRONG.items() if isinstance(entry, kind)), None)
            if wrong is None or (schema.node_id, entry.id) in FREE:
                continue
            found = said(node, good | {entry.id: wrong})
            if repr(wrong) not in found:
                passed.append(f"{schema.node_id} {entry.id}: {found}")
    assert passed == [], "\n".join(passed)


def test_empty_batches_in_a_list_are_left_out():
    found = with_images([IMAGES[:0], IMAGES, IMAGES[:0]])
    assert [len(batch) for batch in found] == [2]
    for nothing in ([], [IMAGES[:0]]):
        with pytest.raises(ValueError, match="images holds no image; link"):
            with_images(nothing)
    assert is_empty({"samples": SAMPLES[:0]})
    assert not is_empty("a picture")
    assert not is_empty(torch.tensor(1.0))
