"""Differentiated models on a card where the host streams weights by default: every loader, dtype, path and queue."""

from __future__ import annotations

import pytest

pytest.importorskip("comfy.memory_management")  # newer than the oldest host

import functools
import gc
from collections.abc import Iterator
from pathlib import Path
from types import MethodType
from typing import Any

import comfy.ldm.models.autoencoder
import comfy.ldm.modules.diffusionmodules.mmdit
import comfy.ldm.modules.diffusionmodules.openaimodel
import comfy.model_management as management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.utils
import folder_paths
import nodes as host_nodes
import torch
from comfy.cldm.cldm import ControlNet
from comfy.taesd.taesd import TAESD
from comfy_api.torch_helpers import set_torch_compile_wrapper
from jepa_guidance.host.comfy.streaming import is_dynamic
from jepa_guidance.host.gradient import residency
from jepa_guidance.host.gradient.chain import LatentGradient
from jepa_guidance.host.gradient.differentiable import writing_in_place
from jepa_guidance.host.gradient.residency import ResidentParts, fits_whole, resident
from jepa_guidance.host.guidance.schedule import Schedule
from jepa_guidance.host.memory.count import LiveStorages
from jepa_guidance.host.options import DENOISER_CONSTANT, FULL, THROUGH_DENOISER, TINY
from jepa_guidance.nodes.guided_ksampler import JEPAGuidedKSampler
from safetensors.torch import save_file

from jepa_core import RarityGradient
from tests.combinations import covering
from tests.host.conftest import tiny_encoder
from tests.host.dynamic_vram import CARD, GIB, LIBRARY, dynamic_vram
from tests.host.families import randomise
from tests.host.guide import guide_model

SEED, STEPS = 5, 2
# The guided node's settings: defaults, except that the second of two steps is guided, at a rank for a small encoder.
SETTINGS = {
    entry.id: entry.default
    for entry in JEPAGuidedKSampler.define_schema().inputs
    if getattr(entry, "default", None) is not None and entry.id not in ("seed", "decoder", "gradient_path")
}
SETTINGS |= {"steps": STEPS, "cfg": 3.0, "scheduler": "simple", "start_percent": 0.5, "end_percent": 1.0}
SETTINGS |= {"preset": "custom", "rank": 3, "oversampling": 2, "power_iterations": 0}
# One level of SD1.5's UNet, and one block of SD3's transformer: as much as the host needs to recognise them.
SD15: dict[str, Any] = {
    "image_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [1],
    "channel_mult": [1],
    "use_spatial_transformer": True,
    "transformer_depth": [1],
    "transformer_depth_output": [1, 1],
    "transformer_depth_middle": 1,
    "context_dim": 768,
    "use_linear_in_transformer": False,
    "legacy": False,
    "num_heads": 8,
}
SD3: dict[str, Any] = {
    "input_size": None,
    "patch_size": 2,
    "in_channels": 16,
    "depth": 1,
    "adm_in_channels": 16,
    "context_embedder_config": {
        "target": "torch.nn.Linear",
        "params": {"in_features": 32, "out_features": 64},
    },
    "pos_embed_max_size": 8,
    "num_patches": 64,
    "pos_embed_scaling_factor": None,
    "qk_norm": "rms",
    "x_block_self_attn_layers": [],
}
CHANNELS = {"SD1.5": 4, "SD3": 16}
WIDTH = {"SD1.5": 768, "SD3": 32}

FLOAT8 = torch.float8_e4m3fn
DTYPES = (torch.float16, torch.bfloat16, torch.float32, FLOAT8)
PATHS = (False, True)


# --- files ----------------------------------------------------------------------------------------------------------


def built(network: type, sizes: dict[str, Any], **more: Any) -> torch.nn.Module:
    return network(
        **sizes, **more, dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init
    )


@functools.cache
def denoiser_weights(family: str) -> dict[str, torch.Tensor]:
    kinds = {
        "SD1.5": (comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel, SD15),
        "SD3": (comfy.ldm.modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper, SD3),
    }
    network = built(*kinds[family])
    randomise(network, seed=1)
    return network.state_dict()


@functools.cache
def vae_weights(family: str) -> dict[str, torch.Tensor]:
    """A decoder with a quarter of the usual channels; the VAE's encoder is not used and left out of files."""
    channels = CHANNELS[family]
    sizes = {"double_z": True, "z_channels": channels, "resolution": 256, "in_channels": 3, "out_ch": 3}
    sizes |= {"ch": 32, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
    network = comfy.ldm.models.autoencoder.AutoencoderKL(ddconfig=sizes, embed_dim=channels)
    decoder = torch.nn.ModuleDict({"decoder": network.decoder, "post_quant_conv": network.post_quant_conv})
    randomise(decoder, seed=2)
    return decoder.state_dict()


@functools.cache
def control_weights() -> dict[str, torch.Tensor]:
    """A ControlNet for SD1.5, with the same blocks as the denoiser."""
    sizes = {
        name: value
        for name, value in SD15.items()
        if name not in ("out_channels", "transformer_depth_output")
    }
    network = built(ControlNet, sizes, hint_channels=3)
    network.load_state_dict(denoiser_weights("SD1.5"), strict=False)
    for part in (network.zero_convs, network.input_hint_block, network.middle_block_out):
        randomise(part, seed=3)
    return {f"control_model.{name}": weight for name, weight in network.state_dict().items()}


@functools.cache
def lora_weights() -> dict[str, torch.Tensor]:
    """A LoRA for every matrix of SD3's block."""
    generator = torch.Generator().manual_seed(4)
    found = {}
    for name, weight in denoiser_weights("SD3").items():
        if name.startswith("joint_blocks") and name.endswith(".weight") and weight.ndim == 2:
            key = f"diffusion_model.{name.removesuffix('.weight')}"
            out, into = weight.shape
            found[f"{key}.lora_up.weight"] = torch.randn(out, 4, generator=generator) * 0.1
            found[f"{key}.lora_down.weight"] = torch.randn(4, into, generator=generator) * 0.1
    return found


def stored(weights: dict[str, torch.Tensor], dtype: torch.dtype, prefix: str = "") -> dict[str, torch.Tensor]:
    """Weights as stored in a file of that dtype; float8 files keep all but matrices in float16."""
    half = torch.float16 if dtype == FLOAT8 else dtype
    return {
        prefix + name: weight.to(dtype if weight.ndim == 2 else half).contiguous()
        for name, weight in weights.items()
    }


def quantised(weights: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights as stored in a scaled float8 file, and the same numbers in float32."""
    # two elements mean that products are computed in full precision
    scaled: dict[str, torch.Tensor] = {"scaled_fp8": torch.zeros(2, dtype=FLOAT8)}
    plain: dict[str, torch.Tensor] = {}
    for name, weight in stored(weights, torch.float16).items():
        scaled[name], plain[name] = weight, weight.float()
        if weight.ndim == 2 and name.endswith(".weight"):
            scale = weight.float().abs().max() / torch.finfo(FLOAT8).max
            scaled[name] = (weight.float() / scale).to(FLOAT8)
            scaled[name.removesuffix("weight") + "scale_weight"] = scale
            plain[name] = scaled[name].float() * scale
    return scaled, plain


def file_name(family: str, dtype: torch.dtype) -> str:
    return f"{family}-{str(dtype).rpartition('.')[2]}.safetensors"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A models folder with a file of each kind in each dtype."""
    root = tmp_path_factory.mktemp("models")
    tiny = TAESD(latent_channels=16)
    randomise(tiny, seed=5)
    content = {"vae_approx": {"taesd3_decoder.safetensors": tiny.taesd_decoder.state_dict()}}
    for family, dtype in [("SD1.5", torch.float16), *(("SD3", dtype) for dtype in DTYPES)]:
        half = torch.float16 if dtype == FLOAT8 else dtype
        denoiser = denoiser_weights(family)
        vae = stored(vae_weights(family), half)
        tensors = {
            "checkpoints": stored(denoiser, dtype, "model.diffusion_model.")
            | {f"first_stage_model.{name}": weight for name, weight in vae.items()},
            "diffusion_models": stored(denoiser, dtype),
            "vae": vae,
            "loras": stored(lora_weights(), half),
        }
        if family == "SD1.5":
            tensors["controlnet"] = stored(control_weights(), half)
        for folder, weights in tensors.items():
            content.setdefault(folder, {})[file_name(family, dtype)] = weights
    scaled, same_numbers = quantised(denoiser_weights("SD3"))
    content["diffusion_models"] |= {"scaled.safetensors": scaled, "same.safetensors": same_numbers}
    patch = pytest.MonkeyPatch()
    for folder, named in content.items():
        (root / folder).mkdir()
        for name, weights in named.items():
            save_file(weights, root / folder / name)
        patch.setitem(folder_paths.folder_names_and_paths, folder, ([str(root / folder)], {".safetensors"}))
        folder_paths.filename_list_cache.pop(folder, None)
    yield root
    patch.undo()
    for folder in content:
        folder_paths.filename_list_cache.pop(folder, None)


# --- graphs ---------------------------------------------------------------------------------------------------------


def result(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output.result[0]


class Graph:
    """Loader nodes and a sampler, as a user connects them; loaded models are kept from queue to queue."""

    def __init__(self, loader: str, dtype: torch.dtype) -> None:
        family = "SD1.5" if loader == "ControlNetLoader" else "SD3"
        name = file_name(family, dtype)
        self.channels = CHANNELS[family]
        self.decoder = TINY if loader == "TAESD" else FULL
        with torch.inference_mode():
            self.positive, self.negative = (
                [[self.random(seed, 1, 3, WIDTH[family]), {"pooled_output": self.random(seed, 1, 16)}]]
                for seed in (10, 11)
            )
            if loader.startswith("UNETLoader"):
                cast = "fp8_e4m3fn" if loader.endswith("float8") else "default"
                self.model = result(host_nodes.UNETLoader().load_unet(name, cast))
                self.vae = result(host_nodes.VAELoader().load_vae(name))
            else:
                self.model, _, self.vae = host_nodes.CheckpointLoaderSimple().load_checkpoint(name)
            if loader == "LoraLoader":
                self.model = self.with_lora(name, 0.7)
            if loader == "ControlNetLoader":
                control = result(host_nodes.ControlNetLoader().load_controlnet(name))
                hint = self.random(12, 1, 32, 32, 3).sigmoid()
                self.positive, self.negative = host_nodes.ControlNetApplyAdvanced().apply_controlnet(
                    self.positive, self.negative, control, hint, 0.8, 0.0, 1.0
                )

    @staticmethod
    def random(seed: int, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

    def with_lora(self, name: str, strength: float) -> Any:
        return result(host_nodes.LoraLoaderModelOnly().load_lora_model_only(self.model, name, strength))

    def sample(self, model: Any) -> torch.Tensor:
        latent = {"samples": torch.zeros(1, self.channels, 4, 4)}
        with torch.inference_mode():
            run = host_nodes.KSampler().sample(
                model, SEED, STEPS, 3.0, "euler", "simple", self.positive, self.negative, latent, 1.0
            )
            return run[0]["samples"].clone()

    def guided(self, through: bool, trace: list[Any] | None = None) -> torch.Tensor:
        """The image of the guided sampler node; its trace is added to `trace`."""
        with torch.inference_mode():
            latent, found = JEPAGuidedKSampler.execute(
                model=self.model,
                seed=SEED,
                positive=self.positive,
                negative=self.negative,
                latent_image={"samples": torch.zeros(1, self.channels, 4, 4)},
                vae=self.vae,
                encoder=tiny_encoder_once(),
                decoder=self.decoder,
                gradient_path=THROUGH_DENOISER if through else DENOISER_CONSTANT,
                **SETTINGS,
            ).result
            if trace is not None:
                trace.append(found)
            return latent["samples"].clone()


tiny_encoder_once = functools.cache(tiny_encoder)


@pytest.fixture
def gradients(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The gradients of all guided steps in the runs of a test."""
    found: list[torch.Tensor] = []
    call = LatentGradient.__call__

    def noting(self: Any, *args: Any) -> Any:
        at_x = call(self, *args)
        found.append(at_x.gradient.detach().double().cpu())
        return at_x

    monkeypatch.setattr(LatentGradient, "__call__", noting)
    return found


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))


# If the input of a streamed layer is on the CPU, the host uses the weight as stored in the file: without a LoRA, and not
# rounded to float8. So in these tests the network that is held constant is another one.
UNPATCHED_ON_THE_CPU = {"LoraLoader", "UNETLoader, cast to float8"}
LOADERS = ("CheckpointLoaderSimple", "UNETLoader", "LoraLoader", "TAESD")
CASES = covering(LOADERS, DTYPES)
CASES += [("UNETLoader, cast to float8", torch.float16), ("ControlNetLoader", torch.float16)]


@pytest.mark.parametrize(("loader", "dtype"), CASES, ids=str)
def test_every_loader_dtype_path_and_queue(files, gradients, loader, dtype):
    expected: dict[bool, list[torch.Tensor]] = {}
    plain = Graph(loader, dtype)
    for through in PATHS:
        plain.guided(through)
        expected[through] = gradients.copy()
        gradients.clear()
    management.unload_all_models()
    with dynamic_vram() as card:
        graph = Graph(loader, dtype)
        assert is_dynamic(graph.model)
        assert is_dynamic(graph.vae.patcher)
        stock = graph.sample(graph.model)
        for through in PATHS:
            images = []
            for _ in ("first queue", "second queue"):
                traces: list[Any] = []
                images.append(graph.guided(through, traces))
                assert traces[-1].notices == []
                if through or loader not in UNPATCHED_ON_THE_CPU:
                    assert cosine(gradients[0], expected[through][0]) >= 0.999
                gradients.clear()
                # models left over from the first run fill the card, as a streamed denoiser does; the host reserves 0.4 GiB
                card.taken = card.free() - GIB
            card.taken = 0
            assert torch.equal(*images)
            assert not torch.equal(images[0], stock)
        assert torch.equal(graph.sample(graph.model), stock)


@pytest.mark.parametrize(("dtype", "computed"), covering(DTYPES, [torch.bfloat16, torch.float16]), ids=str)
def test_files_of_one_dtype_on_a_card_that_computes_in_another(files, gradients, dtype, computed):
    """This used to fail: weights in the file's dtype, inputs in the card's."""
    plain = Graph("CheckpointLoaderSimple", dtype)
    plain.guided(True)
    expected = gradients.pop()
    management.unload_all_models()
    with dynamic_vram(computed) as card:
        graph = Graph("CheckpointLoaderSimple", dtype)
        for through in PATHS:
            traces: list[Any] = []
            image = graph.guided(through, traces)
            assert image.isfinite().all()
            assert traces[-1].notices == []
            assert torch.equal(image, graph.guided(through))
        assert cosine(gradients[-1], expected) > 0.9
        assert card.free() > 0


def test_quantised_tensors_stay_quantised_and_give_the_gradient_of_their_numbers(files, gradients):
    graph = Graph("UNETLoader", torch.float32)

    def load(name: str) -> Any:
        with torch.inference_mode():
            return result(host_nodes.UNETLoader().load_unet(name, "default"))

    graph.model = load("same.safetensors")
    graph.guided(True)
    management.unload_all_models()
    with dynamic_vram():
        graph = Graph("UNETLoader", torch.float32)
        graph.model = load("scaled.safetensors")
        weights = [weight for weight in resident(graph.model).model.parameters() if weight.ndim == 2]
        assert any(hasattr(weight, "__tensor_flatten__") for weight in weights)
        for _ in ("first queue", "second queue"):
            traces: list[Any] = []
            graph.guided(True, traces)
            assert traces[-1].notices == []
            assert cosine(gradients[0], gradients[-1]) >= 0.999


def test_a_resident_model_shares_the_file_and_no_handle_and_is_made_once(files):
    with dynamic_vram():
        graph = Graph("CheckpointLoaderSimple", torch.float32)
        graph.guided(False)  # the dynamic patcher has loaded its weights
        model = resident(graph.model)
        assert not is_dynamic(model)
        assert resident(graph.model.clone()).model is model.model
        # a large one: the host moves small weights to the device permanently
        name = "diffusion_model.joint_blocks.0.x_block.mlp.fc1"
        weight, twin = (patcher.model.get_submodule(name).weight for patcher in (graph.model, model))
        assert weight is not twin
        assert weight.data_ptr() == twin.data_ptr()
        states = ("dynamic_pins", "dynamic_vbars", "_v", "_pins")
        assert any(hasattr(part, name) for part in graph.model.model.modules() for name in states)
        assert not any(hasattr(part, name) for part in model.model.modules() for name in states)
        modules = {id(part) for part in graph.model.model.modules()}
        assert not any(id(part) in modules for part in model.model.modules())
        assert graph.sample(model).isfinite().all()
        assert graph.model.model.get_submodule(name).weight is weight


@pytest.mark.parametrize("loader", ["CheckpointLoaderSimple", "TAESD"])
def test_every_native_handle_is_freed_once(files, loader):
    gc.collect()
    before = set(LIBRARY.live)
    with dynamic_vram():
        graph = Graph(loader, torch.float16)
        for through in PATHS:
            graph.guided(through)
        made = set(LIBRARY.live) - before
        assert made
        del graph
        management.unload_all_models()
        gc.collect()
        assert not made & set(LIBRARY.live)
    assert all(count == 1 for count in LIBRARY.freed.values())


def test_another_lora_strength_reads_no_file_and_gives_another_gradient(files, gradients, monkeypatch):
    with dynamic_vram():
        graph = Graph("LoraLoader", torch.float16)
        base = graph.model
        graph.guided(True)
        reads: list[str] = []
        load = comfy.utils.load_torch_file
        monkeypatch.setattr(
            comfy.utils, "load_torch_file", lambda path, **more: reads.append(path) or load(path, **more)
        )
        graph.model = graph.with_lora(file_name("SD3", torch.float16), 2.0)
        reads.clear()
        graph.guided(True)
        assert reads == []
        assert resident(graph.model).model is resident(base).model
    assert cosine(gradients[0], gradients[-1]) < 0.999
    plain = Graph("LoraLoader", torch.float16)
    plain.model = plain.with_lora(file_name("SD3", torch.float16), 2.0)
    plain.guided(True)
    assert cosine(gradients[-2], gradients[-1]) >= 0.999


def test_a_model_too_large_for_the_card_is_held_constant_before_any_copy(files, monkeypatch):
    with dynamic_vram() as card:
        graph = Graph("CheckpointLoaderSimple", torch.float16)
        expected = graph.guided(False)
        card.total = GIB
        assert not fits_whole(graph.model, graph.vae.patcher)
        monkeypatch.setattr(residency, "_copied", fail_on(graph.model.model))
        traces: list[Any] = []
        assert torch.equal(graph.guided(True, traces), expected)
        assert "do not fit this device together: denoiser constant" in traces[-1].message()


def fail_on(module: torch.nn.Module) -> Any:
    copied = residency._copied

    def copy(patcher: Any) -> Any:
        assert patcher.model is not module
        return copied(patcher)

    return copy


class LikeGGUF(torch.Tensor):
    """A weight in a format of another pack, whose storage does not match its shape."""

    def __new__(cls, data: torch.Tensor, *, kind: str, shape: torch.Size) -> Any:
        return torch.Tensor._make_subclass(cls, data)

    def __init__(self, data: torch.Tensor, *, kind: str, shape: torch.Size) -> None:
        self.kind = kind
        self.of_shape = shape

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        return self.of_shape

    def to(self, *args: Any, **kwargs: Any) -> Any:
        moved = super().to(*args, **kwargs)
        moved.kind, moved.of_shape = self.kind, self.of_shape
        return moved

    def detach(self) -> Any:
        return self

    def numbers(self) -> torch.Tensor:
        assert self.kind == "halves"
        return torch.Tensor(self).reshape(self.of_shape).float()


class GGUFLinear(torch.nn.Linear):
    """Dequantises the weight at every call, as such packs do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight.numbers() if isinstance(self.weight, LikeGGUF) else self.weight
        return torch.nn.functional.linear(x, weight.to(x), self.bias.to(x))


@pytest.mark.parametrize("mode", [writing_in_place, LiveStorages])
def test_code_of_a_weights_class_gets_the_plain_tensor_that_it_asks_for(mode):
    weight = LikeGGUF(torch.ones(4).half(), kind="halves", shape=torch.Size((2, 2)))
    with mode():
        assert type(weight.numbers()) is torch.Tensor


def test_weights_of_a_subclass_keep_class_and_attributes_and_give_the_gradient_of_their_numbers(
    files, gradients
):
    plain = Graph("CheckpointLoaderSimple", torch.float16)
    plain.guided(True)
    with dynamic_vram():
        graph = Graph("CheckpointLoaderSimple", torch.float16)
        with torch.inference_mode():
            for part in graph.model.model.diffusion_model.modules():
                for name, child in list(part.named_children()):
                    if isinstance(child, torch.nn.Linear):
                        linear = GGUFLinear(1, 1)
                        halves = child.weight.detach().half().flatten()
                        linear.weight = torch.nn.Parameter(
                            LikeGGUF(halves, kind="halves", shape=child.weight.shape), requires_grad=False
                        )
                        if child.bias is not None:
                            linear.bias = child.bias
                        else:
                            linear.bias = torch.nn.Parameter(torch.zeros(child.out_features), False)
                        setattr(part, name, linear)
        traces: list[Any] = []
        graph.guided(True, traces)
        assert traces[-1].notices == []
        twins = [part for part in resident(graph.model).model.modules() if isinstance(part, GGUFLinear)]
        assert twins
        assert all(isinstance(part.weight, LikeGGUF) and part.weight.kind == "halves" for part in twins)
    assert cosine(*gradients) >= 0.999


# --- graphs that failed in the past ---------------------------------------------------------------------------------


def patched_model(graph: Graph, model: Any = None, reports: list[Any] | None = None) -> Any:
    """A MODEL guided through the denoiser."""
    with torch.inference_mode():
        return guide_model(
            model or graph.model,
            graph.vae,
            tiny_encoder_once(),
            Schedule(start_percent=0.5, end_percent=1.0),
            RarityGradient(k=3, oversample=2, power_iterations=0),
            through_denoiser=True,
            report=(reports if reports is not None else []).append,
        )


def test_nothing_stays_on_the_card_when_the_guided_model_is_gone(files):
    gc.collect()  # left over from other tests
    management.cleanup_models_gc()
    with dynamic_vram():
        graph = Graph("LoraLoader", torch.float32)
        for strength in (0.5, 1.0):
            model = graph.with_lora(file_name("SD3", torch.float32), strength)
            graph.sample(patched_model(graph, model))
        del model
        copied = resident(graph.model).model
        assert copied.model_loaded_weight_memory > 0
        assert all(entry.model is not None for entry in management.current_loaded_models)
        management.unload_all_models()
        assert copied.model_loaded_weight_memory == 0


@pytest.mark.parametrize("loaded_before", [False, True])
def test_a_lora_in_bypass_mode_is_neither_lost_nor_left_on_the_model(files, loaded_before):
    with dynamic_vram(), torch.inference_mode():
        graph = Graph("CheckpointLoaderSimple", torch.float32)
        plain = graph.sample(graph.model)
        bypass = comfy.sd.load_bypass_lora_for_models(graph.model, None, lora_weights(), 1.0, 0.0)[0]
        if loaded_before:
            graph.sample(bypass)
        without = graph.sample(patched_model(graph))
        assert torch.equal(graph.sample(resident(graph.model)), plain)
        reports: list[Any] = []
        found = graph.sample(patched_model(graph, bypass, reports))
        assert (
            "bypass mode is bound to weights that the host streams: denoiser constant"
            in reports[-1].message()
        )
        assert not torch.equal(found, without)
        assert torch.equal(graph.sample(graph.model), plain)


def compiled(model: Any) -> Any:
    set_torch_compile_wrapper(model, backend="eager")
    return model


def with_another_forward(model: Any) -> Any:
    network = model.get_model_object("diffusion_model")

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return type(self).forward(self, *args, **kwargs)

    model.add_object_patch("diffusion_model.forward", MethodType(forward, network))
    return model


@pytest.mark.parametrize("patch", [compiled, with_another_forward])
def test_patches_bound_to_the_streamed_network_are_bound_to_the_copy(files, patch):
    with dynamic_vram():
        graph = Graph("LoraLoader", torch.float32)
        right = graph.guided(True)
        graph.model = patch(graph.model.clone())
        traces: list[Any] = []
        assert torch.allclose(graph.guided(True, traces), right, atol=1e-4)
        assert traces[-1].notices == []


def test_a_function_that_holds_the_streamed_network_is_not_differentiated(files):
    with dynamic_vram():
        graph = Graph("CheckpointLoaderSimple", torch.float32)
        expected = graph.guided(False)
        graph.model = graph.model.clone()
        network = graph.model.model.diffusion_model
        graph.model.add_object_patch(
            "diffusion_model.forward", lambda *args, **kwargs: type(network).forward(network, *args, **kwargs)
        )
        traces: list[Any] = []
        assert torch.allclose(graph.guided(True, traces), expected, atol=1e-4)
        assert "is bound to weights that the host streams: denoiser constant" in traces[-1].message()


class MovedPatch:
    """Like the host's model patches, it has a model, and the host moves it before a run."""

    def __init__(self, model_patch: Any) -> None:
        self.model_patch = model_patch
        self.at = "cpu"

    def __call__(self, function: Any, arguments: dict) -> Any:
        assert self.at == CARD
        assert not is_dynamic(self.model_patch) or not torch.is_grad_enabled()
        return function(arguments["input"], arguments["timestep"], **arguments["c"])

    def to(self, where: Any) -> Any:
        if isinstance(where, torch.device):
            self.at = where
        return self

    def models(self) -> list[Any]:
        return [self.model_patch]


@pytest.mark.parametrize("before", [True, False])
def test_the_host_loads_and_moves_the_copy_of_a_patch(files, before):
    with dynamic_vram():
        graph = Graph("CheckpointLoaderSimple", torch.float32)
        module = torch.nn.Sequential(torch.nn.Linear(2, 2))
        patch = MovedPatch(comfy.model_patcher.ModelPatcherDynamic(module, CARD, torch.device("cpu")))
        reports: list[Any] = []
        model = graph.model.clone()
        if not before:
            model = patched_model(graph, model, reports)
        model.set_model_unet_function_wrapper(patch)
        if before:
            model = patched_model(graph, model, reports)
        for _ in ("first queue", "second queue"):
            graph.sample(model)
            assert reports[-1].notices == []
        assert model.model_options["model_function_wrapper"] is patch
        assert is_dynamic(patch.model_patch)


def test_copied_patches_hold_the_copies_of_their_patches_and_parts_of_models(files):
    with dynamic_vram():
        module = torch.nn.Sequential(torch.nn.Linear(2, 2))
        patch = MovedPatch(comfy.model_patcher.ModelPatcherDynamic(module, CARD, torch.device("cpu")))
        outer = MovedPatch(patch.model_patch)
        outer.inner, outer.parts, outer.layer = patch, [patch], module[0]
        copies = ResidentParts()
        table = copies({"x": [patch], "y": [outer]})
        new, (found,) = table["x"][0], table["y"]
        assert found.inner is new
        assert found.parts == [new]
        assert found.layer is new.model_patch.model[0]
        assert outer.inner is patch


def test_a_lora_after_guidance_does_not_load_the_decoder_twice(files):
    with dynamic_vram() as card:
        graph = Graph("LoraLoader", torch.float32)
        model = graph.with_lora(file_name("SD3", torch.float32), 0.5)
        patched = patched_model(graph)
        lora = host_nodes.LoraLoaderModelOnly()
        for strength in (0.5, 1.0):
            with torch.inference_mode():
                model = result(lora.load_lora_model_only(patched, file_name("SD3", torch.float32), strength))
            graph.sample(model)
            held = [entry.model.model for entry in management.current_loaded_models]
            assert len(held) == len({id(one) for one in held})
            card.taken = card.free() - GIB // 2
