"""A file that stands in place of weights is named for what it is, with what helps, wherever weights are read."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from jepa_core import load_encoder, load_reference
from jepa_core.checkpoint import read_json
from jepa_core.clip_tokenizer import read_vocabulary
from jepa_core.djepa import load_djepa, load_tokenizer
from jepa_core.prompt_fit import load_prompt_fit
from jepa_core.tensors import unreadable

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 88283115\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"
WEIGHTS = save({"a": torch.zeros(100), "b": torch.ones(50)}, {"format": "pt"})


def torch_file(new: bool) -> Callable[[Path], bytes]:
    def content(folder: Path) -> bytes:
        torch.save({"a": torch.zeros(3)}, folder / "t.pt", _use_new_zipfile_serialization=new)
        return (folder / "t.pt").read_bytes()

    return content


FILES: dict[str, tuple[bytes | Callable[[Path], bytes], str]] = {
    "pointer": (LFS, "is a Git LFS pointer, .* run `git lfs pull`"),
    "page": (PAGE, "is a web page that was saved in place of the file"),
    "page in capitals": (b"<HTML>", "is a web page that was saved in place of the file"),
    "access denied": (b'<?xml version="1.0"?><Error/>', "is a web page that was saved in place of the file"),
    "zip of torch": (torch_file(True), "is a zip archive, as torch.save writes"),
    "pickle of torch": (torch_file(False), "is a pickle, as torch.save writes"),
    "gguf": (b"GGUF\x03\0\0\0" + bytes(100), "is a GGUF file"),
    "answer": (b'{"error": "Access to model is restricted"}', "is JSON text, perhaps what a site answered"),
    "empty": (b"", "is damaged: it is empty"),
    "short header": (WEIGHTS[:40], r"is damaged: it ends after 40 of \d+ bytes or more"),
    "short weights": (
        WEIGHTS[:-1],
        rf"is damaged: it ends after {len(WEIGHTS) - 1} of {len(WEIGHTS)} bytes or more",
    ),
    "anything": (bytes(range(256)) * 4, "is damaged or not a safetensors file"),
}


def load_clip(file: Path) -> None:
    (file.parent / "config.json").write_text(json.dumps({"model_type": "clip"}))
    tokens = {
        name: number for number, name in enumerate(("<|startoftext|>", "<|endoftext|>", "a", "b", "ab"))
    }
    (file.parent / "vocab.json").write_text(json.dumps(tokens))
    (file.parent / "merges.txt").write_text("a b\n")
    load_prompt_fit(file)


LOADERS: tuple[Callable, ...] = (load_encoder, load_djepa, load_tokenizer, load_reference, load_clip)


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("load", LOADERS)
def test_another_file_under_the_name_of_weights(tmp_path: Path, load: Callable, kind: str) -> None:
    content, why = FILES[kind]
    file = tmp_path / "model.safetensors"
    file.write_bytes(content if isinstance(content, bytes) else content(tmp_path))
    with pytest.raises(ValueError, match=f"model.safetensors {why}"):
        load(file)


@pytest.mark.parametrize(("content", "why"), [(LFS, "is a Git LFS pointer"), (PAGE, "is a web page")])
def test_another_file_under_the_name_of_a_configuration_or_a_tokenizer(
    tmp_path: Path, content: bytes, why: str
) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"config\.json {why}"):
        read_json(tmp_path / "config.json")
    (tmp_path / "vocab.json").write_text(json.dumps({"<|startoftext|>": 0, "<|endoftext|>": 1}))
    (tmp_path / "merges.txt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"merges\.txt {why}"):
        read_vocabulary(tmp_path)


def test_a_complete_file_is_not_said_to_be_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(WEIGHTS)
    assert (
        unreadable(file, ValueError("why"))
        == f"{file} is damaged or not a safetensors file (why); download it again"
    )


@pytest.mark.parametrize(
    "header",
    [b"{" * 5000, b'{"a": 5}', b'{"a": {"data_offsets": ["x", "y"]}}', b'{"a": {"data_offsets": []}}', b"{}"],
)
def test_a_header_that_says_nothing_is_no_other_error(tmp_path: Path, header: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    assert "is damaged or not" in unreadable(file, ValueError())


def test_a_header_is_read_up_to_a_limit(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", 1 << 62) + b"{" + bytes(1000))
    assert "is damaged or not" in unreadable(file, ValueError())
