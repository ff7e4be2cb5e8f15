"""Untrusted files: any change to a good checkpoint loads or is refused by name, without excessive memory."""

from __future__ import annotations

import contextlib
import json
import math
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from jepa_core import EncoderFileError, load_encoder
from jepa_core.architectures import ARCHITECTURES, ENTRIES
from jepa_core.checkpoint import is_complete

CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
QUICK = settings(deadline=None, derandomize=True, max_examples=60, suppress_health_check=CHECKS)
THOROUGH = settings(deadline=None, derandomize=True, max_examples=2000, suppress_health_check=CHECKS)


@pytest.fixture(scope="module")
def good(save_model) -> bytes:
    """64 wide: it loads without a configuration, which would otherwise be refused before what is spoiled."""
    return (save_model(hidden_size=64) / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("spoiled") / "model.safetensors"


@contextlib.contextmanager
def little_memory(size: int = 4 << 30) -> Iterator[None]:
    """Limit the process to `size` more bytes of memory; the files here are below a megabyte."""
    if sys.platform != "linux":
        yield
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def load(file: Path, content: bytes, config: str | None = None, image_size: int = 28) -> None:
    """Load the file; passes if the encoder works or is refused with the file's name."""
    file.write_bytes(content)
    neighbour = file.with_name("config.json")
    neighbour.unlink(missing_ok=True)
    if config is not None:
        neighbour.write_text(config)
    refusal = ""
    try:
        with little_memory():
            encoder = load_encoder(file, image_size=image_size)
    except ValueError as error:
        refusal = str(error)
        assert "allocat" not in refusal
        # another patch size is the caller's matter: image_size does not fit it
        named = (file.name, neighbour.name) if isinstance(error, EncoderFileError) else ("image_size",)
    if refusal:
        assert any(name in refusal for name in named)
        return
    # no more than the file holds, whatever its header says
    held = sum(weight.numel() for weight in encoder.parameters())
    assert held * 4 <= 2 * len(content)
    assert encoder(torch.zeros(1, 3, image_size, image_size)).shape == (1, encoder.embed_dim)


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(header: Any, data: bytes, length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


# --- bytes --------------------------------------------------------------------------------------------------------


def check_bytes(good: bytes, spoiled: Path, edits: list[tuple[float, int]], keep: float) -> None:
    content = bytearray(good)
    for place, value in edits:
        # most of a file is weights; half of the edits go to its beginning
        where = int(place * 2 * len(content)) if place < 0.5 else int((place - 0.5) * 6000)
        content[min(where, len(content) - 1)] = value
    load(spoiled, bytes(content[: math.ceil(keep * len(content))]))


edits = st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=6)
keeps = st.just(1.0) | st.floats(0, 1)


@QUICK
@given(edits=edits, keep=keeps)
def test_any_bytes_changed_or_cut_off(good, spoiled, edits, keep):
    check_bytes(good, spoiled, edits, keep)


@pytest.mark.long
@THOROUGH
@given(edits=edits, keep=keeps)
def test_any_bytes_changed_or_cut_off_thoroughly(good, spoiled, edits, keep):
    check_bytes(good, spoiled, edits, keep)


# --- headers ------------------------------------------------------------------------------------------------------

HUGE = [0, 1, -1, 2**31, 2**40, 2**63 - 1, 2**64 - 1, 10**30]
nasty = st.recursive(
    st.none() | st.booleans() | st.sampled_from(HUGE) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def check_header(good: bytes, spoiled: Path, which: int, field: str, value: Any, length: int | None) -> None:
    header, data = split(good)
    names = sorted(header)
    entry = header[names[which % len(names)]]
    if field == "name":
        header[str(value)] = header.pop(names[which % len(names)])
    elif field == "remove":
        del header[names[which % len(names)]]
    elif field == "add":
        header[f"extra {value}"] = value
    elif field == "replace":
        header[names[which % len(names)]] = value
    else:
        entry[field] = value
    load(spoiled, join(header, data, length))


fields = st.sampled_from(["name", "remove", "add", "replace", "dtype", "shape", "data_offsets"])
shapes = st.lists(st.sampled_from([*HUGE, 3, 14, 32]), max_size=5)
dtypes = st.sampled_from(["F64", "F16", "BF16", "I64", "BOOL", "F8_E4M3", "F32", "F4", "C64", ""])
lengths = st.none() | st.sampled_from([0, 1, 7, 2**20, 2**31, 2**63, 2**64 - 1])


@QUICK
@given(st.integers(0, 50), fields, nasty | shapes | dtypes, lengths)
@example(0, "shape", [2**40, 2**40], None)
@example(3, "data_offsets", [0, 2**63], None)
@example(3, "data_offsets", [8, 4], None)
@example(3, "data_offsets", [0, 4], None)
def test_any_header(good, spoiled, which, field, value, length):
    check_header(good, spoiled, which, field, value, length)


@pytest.mark.long
@THOROUGH
@given(st.integers(0, 50), fields, nasty | shapes | dtypes, lengths)
def test_any_header_thoroughly(good, spoiled, which, field, value, length):
    check_header(good, spoiled, which, field, value, length)


def test_a_header_of_another_kind_of_json(good, spoiled):
    _, data = split(good)
    for header in ([], 3, "x", None, {"": {}}, {"a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}):
        load(spoiled, join(header, data))
    deep = b'{"a":' * 100_000
    load(spoiled, struct.pack("<Q", len(deep)) + deep + data)


# --- tensors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused_with_their_name(good, spoiled, value):
    spoiled.write_bytes(good)
    tensors = load_file(spoiled)
    name = "encoder.layer.1.mlp.fc2.weight"
    tensors[name][3, 4] = value
    save_file(tensors, spoiled, metadata={"format": "pt"})
    with pytest.raises(EncoderFileError, match=rf"{name} holds NaN or infinite values"):
        load_encoder(spoiled, image_size=28)


def with_tensors(good: bytes, added: dict[str, list[int]], data: bytes = b"") -> bytes:
    """The file with tensors of these shapes at its end, which share `data`: one float each, or nothing."""
    header, rest = split(good)
    end = len(rest)
    for name, shape in added.items():
        size = 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    return join(header, rest + data)


@pytest.mark.parametrize("size", [2**20, 2**31, 2**40, 2**62])
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("embeddings.register_tokens", "0 N 64"),
        ("embeddings.register_tokens", "1 N 0"),
        ("embeddings.position_embeddings", "1 N 0"),
        ("encoder.layer.0.mlp.fc1.weight", "N 0"),
        ("embeddings.patch_embeddings.projection.weight", "N 3 14 0"),
        ("embeddings.patch_embeddings.projection.weight", "0 3 N N"),
    ],
)
def test_an_empty_tensor_that_claims_a_huge_shape_is_refused(good, spoiled, name, shape, size):
    """It costs no bytes, and overflows torch's own sizes."""
    header, data = split(good)
    start, end = header.pop(name)["data_offsets"] if name in header else (0, 0)
    for entry in header.values():
        if entry.get("data_offsets", [0])[0] >= end > 0:
            entry["data_offsets"] = [place - (end - start) for place in entry["data_offsets"]]
    sizes = [size if word == "N" else int(word) for word in shape.split()]
    content = with_tensors(join(header, data[:start] + data[end:]), {name: sizes})
    load(spoiled, content)
    with pytest.raises(EncoderFileError, match=r"is empty|overflow"):
        load_encoder(spoiled, image_size=28)


@pytest.mark.parametrize(
    ("count", "message"), [(1000, r"num_hidden_layers 1000 is not"), (20_000, r"holds 200\d\d tensors")]
)
@pytest.mark.timeout(20)
def test_a_file_that_names_thousands_of_layers_is_refused_before_they_are_built(
    good, spoiled, count, message
):
    names = {f"encoder.layer.{layer}.x": [1] for layer in range(2, count)}
    spoiled.write_bytes(with_tensors(good, names, bytes(4 * len(names))))
    spoiled.with_name("config.json").unlink(missing_ok=True)
    with pytest.raises(EncoderFileError, match=message):
        load_encoder(spoiled, image_size=28)


@pytest.mark.parametrize("patch", [1, 2, 7])
def test_patches_so_small_that_attention_takes_all_memory_are_refused(good, spoiled, patch):
    spoiled.write_bytes(good)
    tensors = load_file(spoiled)
    name = "embeddings.patch_embeddings.projection.weight"
    tensors[name] = tensors[name][..., :patch, :patch].contiguous()
    save_file(tensors, spoiled)
    with pytest.raises(EncoderFileError, match=f"patch_size {patch} is not a whole number from 8"):
        load_encoder(spoiled, image_size=224)


# --- configurations -----------------------------------------------------------------------------------------------

KEYS = (
    "model_type",
    "num_attention_heads",
    "layer_norm_eps",
    "hidden_act",
    "hidden_size",
    "num_hidden_layers",
    "image_size",
    "patch_size",
    "mlp_ratio",
    "num_register_tokens",
    "auto_map",
    "architectures",
)


@QUICK
@given(st.dictionaries(st.sampled_from(KEYS), nasty, max_size=5))
@example({"auto_map": {"AutoModel": "evil.py"}, "model_type": "dinov2"})
@example({"layer_norm_eps": math.nan})
@example({"num_attention_heads": True})
@example({"image_size": 2**40, "hidden_size": 2**40, "num_hidden_layers": 2**31})
def test_any_configuration(good, spoiled, config):
    load(spoiled, good, json.dumps(config))


@pytest.fixture(scope="module")
def others(save_model) -> dict[str, tuple[bytes, dict]]:
    """Weights and configuration of every kind of encoder that needs one."""
    found = {}
    for kind, row in ARCHITECTURES.items():
        if not row.signature:
            folder = save_model(kind)
            settings = json.loads((folder / "config.json").read_text())
            found[kind] = ((folder / "model.safetensors").read_bytes(), settings)
    return found


@QUICK
@given(
    st.sampled_from([kind for kind, row in ARCHITECTURES.items() if not row.signature]),
    st.dictionaries(st.sampled_from(list(ENTRIES)), nasty | st.integers(-1, 80), min_size=1, max_size=3),
    st.booleans(),
)
@example("dinov3_vit", {"num_attention_heads": 16}, False)  # two numbers a head, and its rotations take four
@example("vjepa2", {"num_attention_heads": 32}, False)
@example(
    "siglip_vision_model", {"num_hidden_layers": 100, "hidden_size": 2**14, "intermediate_size": 2**16}, False
)
@example("clip_vision_model", {"image_size": 4096, "patch_size": 8}, True)
def test_any_entries_of_any_kind(others, spoiled, kind, entries, nested):
    content, settings = others[kind]
    settings = settings | entries
    container = ARCHITECTURES[kind].container
    if nested and container:
        settings = {"model_type": container, "vision_config": settings}
    load(spoiled, content, json.dumps(settings), image_size=16)


@QUICK
@given(st.text() | st.binary().map(lambda content: content.decode("latin-1")))
def test_any_text_for_a_configuration(good, spoiled, text):
    load(spoiled, good, text.encode("utf-8", "replace").decode())


@pytest.mark.parametrize("stated", [["dinov2"], {"a": 1}, None, 3])
def test_a_download_whose_model_type_is_no_text_is_incomplete(good, spoiled, stated):
    spoiled.write_bytes(good)
    spoiled.with_name("config.json").write_text(json.dumps({"model_type": stated}))
    assert not is_complete(spoiled.parent)
    spoiled.with_name("config.json").write_text(json.dumps({"model_type": "dinov2"}))
    assert is_complete(spoiled.parent)
