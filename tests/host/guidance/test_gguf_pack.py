"""City96's GGUF loader, run for real: JEPA_OTHER_PACKS names a folder with a clone of ComfyUI-GGUF (needs gguf)."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import comfy.sd
import folder_paths
import pytest
import torch
from jepa_guidance.host.guidance.schedule import Schedule
from torch import Tensor

from jepa_core import RarityGradient
from tests.host.conftest import tiny_encoder
from tests.host.dynamic_vram import dynamic_vram
from tests.host.families import Family, sd3
from tests.host.guide import guide_model

FOLDER = os.environ.get("JEPA_OTHER_PACKS", "")
CLONE = Path(FOLDER) / "ComfyUI-GGUF"
BLOCK = 32  # numbers with one scale
TYPES = ("Q8_0", "Q5_1", "Q4_0", "BF16")

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        not (FOLDER and CLONE.is_dir()),
        reason="JEPA_OTHER_PACKS names no folder with a clone of ComfyUI-GGUF",
    ),
]


def in_blocks(weight: Tensor) -> bool:
    return weight.ndim == 2 and weight.shape[1] % BLOCK == 0


def write(path: Path, weights: dict[str, Tensor], kind: str) -> None:
    """Writes a GGUF file of a denoiser: matrices in blocks, everything else in float32."""
    import gguf

    writer = gguf.GGUFWriter(str(path), "sd3")
    for name, weight in weights.items():
        stored = gguf.GGMLQuantizationType[kind if in_blocks(weight) else "F32"]
        values = weight.float().numpy()
        writer.add_tensor(name, gguf.quants.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The pack's nodes, with a folder of GGUF files of its own."""
    parent = sys.modules.setdefault("gguf_pack", ModuleType("gguf_pack"))
    parent.__path__ = [str(CLONE)]
    with pytest.MonkeyPatch.context() as patch:
        nodes = import_module("gguf_pack.nodes")
        folder = str(tmp_path_factory.mktemp("gguf"))
        for key in ("unet", "unet_gguf", "diffusion_models"):
            patch.setitem(folder_paths.folder_names_and_paths, key, ([folder], {".gguf"}))
        yield nodes


@pytest.fixture(scope="module")
def family() -> Family:
    return sd3()


@pytest.fixture(scope="module", params=TYPES)
def pair(request: pytest.FixtureRequest, pack: Any, family: Family) -> tuple[Any, Any]:
    """A MODEL of the pack's loader, and the host's of the numbers that the pack makes of the blocks."""
    weights = family.model.model.diffusion_model.state_dict()
    folder = Path(folder_paths.get_folder_paths("unet_gguf")[0])
    write(folder / f"{request.param}.gguf", weights, request.param)
    with torch.inference_mode():
        (blocks,) = pack.UnetLoaderGGUF().load_unet(f"{request.param}.gguf")
        network = blocks.model.diffusion_model
        stored = dict(network.named_parameters()) | dict(network.named_buffers())
        numbers_of = import_module("gguf_pack.dequant").dequantize_tensor
        numbers = {name: Tensor(numbers_of(stored[name], torch.float32)) for name in weights}
        plain = comfy.sd.load_diffusion_model_state_dict(numbers, {"dtype": torch.float32})
    assert sum(pack.is_quantized(part) for part in stored.values()) > 5
    return blocks, plain


def guided(family: Family, model: Any, through: bool, reports: list[Any], strength: float = 0.7) -> Any:
    return guide_model(
        model,
        family.vae,
        tiny_encoder(),
        Schedule(strength=strength, end_percent=1.0),
        RarityGradient(k=3, oversample=2, power_iterations=0),
        through_denoiser=through,
        report=reports.append,
    )


def lora(family: Family) -> dict[str, Tensor]:
    """A LoRA for every matrix that is in blocks."""
    generator, found = torch.Generator().manual_seed(4), {}
    for name, weight in family.model.model.diffusion_model.state_dict().items():
        if name.endswith(".weight") and in_blocks(weight):
            key, (out, into) = f"diffusion_model.{name.removesuffix('.weight')}", weight.shape
            found[f"{key}.lora_up.weight"] = torch.randn(out, 4, generator=generator) * 0.1
            found[f"{key}.lora_down.weight"] = torch.randn(4, into, generator=generator) * 0.1
    return found


@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("patched", [False, True], ids=["plain", "LoRA"])
def test_a_file_of_blocks_is_guided_as_its_numbers_are(
    pair: tuple[Any, Any], family: Family, stock: Any, through: bool, patched: bool
) -> None:
    changes = []
    for model in pair:
        if patched:
            model, _ = comfy.sd.load_lora_for_models(model, None, lora(family), 1.0, 0.0)
        drawn = {"latent_image": family.latent}
        plain, reports = stock(model, family, **drawn), []
        assert torch.equal(stock(guided(family, model, through, [], 0.0), family, **drawn), plain)
        changes.append(stock(guided(family, model, through, reports), family, **drawn) - plain)
        assert reports[-1].guided_steps
        assert reports[-1].notices == []
        assert torch.equal(stock(model, family, **drawn), plain)
    found, expected = changes
    assert expected.norm() > 0
    assert (found - expected).norm() <= 1e-3 * expected.norm()


@pytest.mark.parametrize("through", [False, True])
def test_it_is_guided_on_a_card_where_the_host_streams_weights(
    pack: Any, family: Family, stock: Any, through: bool
) -> None:
    weights = family.model.model.diffusion_model.state_dict()
    folder = Path(folder_paths.get_folder_paths("unet_gguf")[0])
    write(folder / "streamed.gguf", weights, "Q8_0")
    found = []
    for streams in (nullcontext, dynamic_vram):
        with streams():
            with torch.inference_mode():
                (model,) = pack.UnetLoaderGGUF().load_unet("streamed.gguf")
            reports: list[Any] = []
            found.append(stock(guided(family, model, through, reports), family, latent_image=family.latent))
            assert reports[-1].notices == []
    assert torch.equal(*found)
