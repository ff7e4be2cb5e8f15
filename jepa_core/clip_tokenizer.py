"""The tokenizer of a CLIP, from the files beside its weights."""

import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import transformers

from .checkpoint import EncoderFileError, read_json
from .tensors import other_file

VOCABULARY, MERGES = "vocab.json", "merges.txt"
BOTH_IN_ONE = "tokenizer.json"
# CLIP's own take 0.5 to 2.5 MB
_MAX_BYTES = 1 << 24
BEGIN, END = "<|startoftext|>", "<|endoftext|>"


class Vocabulary(NamedTuple):
    """What byte-pair encoding needs: the number of each token, and the pairs that are merged, the most common first."""

    tokens: dict[str, int]
    merges: list[tuple[str, str]]


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of a folder that may be read, whether or not they exist."""
    return [folder / name for name in (VOCABULARY, MERGES, BOTH_IN_ONE)]


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds the files of a tokenizer, undamaged."""
    try:
        read_vocabulary(folder)
    except EncoderFileError:
        return False
    return True


def read_vocabulary(folder: Path) -> Vocabulary:
    """Read vocab.json and merges.txt, or tokenizer.json where these are missing. Other settings of a tokenizer are ignored.

    Raises:
        EncoderFileError: a missing or damaged file.
    """
    vocabulary, merges, both = tokenizer_files(folder)
    if vocabulary.is_file() and merges.is_file():
        pairs = [line.split(" ") for line in _lines(merges) if line and not line.startswith("#version")]
        return _checked(vocabulary, read_json(vocabulary, _MAX_BYTES), merges, pairs)
    if both.is_file():
        model = read_json(both, _MAX_BYTES).get("model")
        model = model if isinstance(model, dict) else {}
        # the file has pairs as lists, or joined by a space
        listed = model.get("merges")
        listed = listed if isinstance(listed, list) else []
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in listed]
        return _checked(both, model.get("vocab"), both, pairs)
    raise EncoderFileError(
        f"{folder} has no tokenizer: put {VOCABULARY} and {MERGES}, or {BOTH_IN_ONE}, of the same CLIP there"
    )


def build_tokenizer(vocabulary: Vocabulary) -> Any:
    """transformers' CLIP tokenizer. Nothing but the vocabulary is read, and nothing is looked up on the hub."""
    library: Any = transformers  # its classes and their arguments changed with version 5
    if int(transformers.__version__.split(".")[0]) >= 5:
        return library.CLIPTokenizer(vocab=vocabulary.tokens, merges=vocabulary.merges)
    # before version 5 it takes only files, whose first line is a version
    with tempfile.TemporaryDirectory() as folder:
        tokens, merges = Path(folder, VOCABULARY), Path(folder, MERGES)
        tokens.write_text(json.dumps(vocabulary.tokens), encoding="utf-8")
        lines = ["#version: 0.2", *map(" ".join, vocabulary.merges)]
        merges.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return library.CLIPTokenizerFast(vocab_file=str(tokens), merges_file=str(merges))


def _lines(file: Path) -> list[str]:
    if file.stat().st_size > _MAX_BYTES:
        raise EncoderFileError(f"{file} is larger than any file of its kind")
    try:
        # not splitlines: some tokens are line separators of Unicode
        return file.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise EncoderFileError(f"{file} is not UTF-8 text ({error}); download it again") from error


def _checked(file: Path, tokens: Any, merges_file: Path, pairs: list) -> Vocabulary:
    """Raises EncoderFileError, naming the file, unless this is a CLIP's vocabulary and all merges are in it."""
    if not isinstance(tokens, dict) or not {BEGIN, END} <= tokens.keys():
        raise EncoderFileError(
            f"{file} is not the vocabulary of a CLIP, it has no {BEGIN}; download it again"
        )
    numbers = tokens.values()
    if not all(type(number) is int for number in numbers) or sorted(numbers) != list(range(len(tokens))):
        raise EncoderFileError(
            f"{file}: its tokens are not numbered from 0 to {len(tokens) - 1}; download it again"
        )
    for pair in pairs:
        if not _is_merge(pair, tokens):
            if what := other_file(merges_file):
                raise EncoderFileError(f"{merges_file} {what}")
            raise EncoderFileError(
                f"{merges_file}: {pair!r:.100} is not two tokens of the vocabulary; download it again"
            )
    if not pairs:
        raise EncoderFileError(f"{merges_file} holds no merges; download it again")
    return Vocabulary(tokens, [(first, second) for first, second in pairs])


def _is_merge(pair: Any, tokens: dict[str, int]) -> bool:
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
        return False
    first, second = pair
    return {first, second, first + second} <= tokens.keys()
