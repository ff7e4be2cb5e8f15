"""The names in the encoder loader's menu, and their files in models/jepa."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...jepa_core.checkpoint import neighbours, read_config
from ...jepa_core.clip_tokenizer import tokenizer_files
from ...jepa_core.hub import (
    ENCODERS,
    TOKENIZER_FILES,
    EncoderDownloadError,
    fetch_encoder,
    fetch_tokenizer,
)
from ...jepa_core.prompt_fit import MODEL_TYPE
from ...jepa_core.writing import UnwritableError
from ..comfy.model_folders import ENCODER_FOLDER, files_in_menu, folder_to_write, inside, writing_to
from ..comfy.required import folder_paths

PAPER_ENCODER = "dinov2-with-registers-small"
FACTS = "jepa_installed"  # where an input of object_info has menu_facts; web/js/encoders.js reads it


def encoder_names() -> list[str]:
    """Names for the menu: the installed encoders, those of the hub before other files; then those that can be downloaded."""
    local = files_in_menu(ENCODER_FOLDER)
    others = [name for name in local if Path(name).parts[0] not in ENCODERS]
    here = [name for name in ENCODERS if _installed_file(name)]
    return [*here, *others, *(name for name in ENCODERS if name not in here)]


def _installed_file(name: str) -> Path | None:
    """The weights of a hub encoder in the model folders, unchecked; None if they are not there."""
    files = (
        Path(path) / name / "model.safetensors" for path in folder_paths.get_folder_paths(ENCODER_FOLDER)
    )
    # not Path.is_file, which raises for a folder that this program may not open, or a drive that is gone
    return next((file for file in files if os.path.isfile(file)), None)


def is_installed(name: str) -> bool:
    """Whether an encoder of the menu is here, so that nothing is downloaded."""
    return name not in ENCODERS or _installed_file(name) is not None


def menu_facts(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What the page writes after each of these names; the names themselves, which graphs save, do not depend on it."""
    facts: dict[str, dict[str, Any]] = {}
    for name in names:
        source = ENCODERS.get(name)
        facts[name] = {"installed": is_installed(name)}
        if source is not None:
            facts[name] |= {
                "megabytes": source.megabytes,
                "gated": source.gated,
                "commercial": source.commercial,
            }
    return facts


def default_installed(names: Sequence[str]) -> str | None:
    """The encoder to take in place of one that is not in this menu: the paper's if it is here, else the first one here."""
    here = [name for name in names if is_installed(name)]
    return PAPER_ENCODER if PAPER_ENCODER in here else next(iter(here), None)


def absent_message(name: Any, names: Sequence[str]) -> str | None:
    """Why there is no such encoder in this menu, and what to choose; None if there is."""
    if name in names:
        return None
    here = default_installed(names)
    advice = f"choose {here}, which is installed" if here else f"choose one of {', '.join(ENCODERS)}"
    return (
        f"There is no encoder {name!r:.200} here; put its .safetensors file (and config.json) into "
        f"models/{ENCODER_FOLDER}, or {advice}."
    )


def clip_names() -> list[str]:
    """The encoders in the menu that are CLIPs, by the hub's table or by their configuration."""
    return [name for name in encoder_names() if _is_clip(name)]


def _is_clip(name: str) -> bool:
    if name in ENCODERS:
        return ENCODERS[name].model_type == MODEL_TYPE
    try:
        file = _inside_encoders(Path(folder_paths.get_full_path_or_raise(ENCODER_FOLDER, name)))
        return read_config(file).get("model_type") == MODEL_TYPE
    except (ValueError, OSError):  # a link that leads out, a damaged configuration, a file that has just gone
        return False


def encoder_file(
    name: str, *, non_commercial: bool = False, on_progress: Callable[[int, int], None] | None = None
) -> Path:
    """Return the weights file of an encoder in the menu, downloading a hub encoder on first use.

    Args:
        non_commercial: also download weights that must not be used commercially.

    Raises:
        ValueError: a name that is not in the menu, or a link that leads out of the model folders.
        jepa_core.hub.EncoderLicenceError: missing weights that must not be used commercially.
        jepa_core.hub.EncoderDownloadError: the hub cannot be reached; says which file to put where, and
            which encoder is installed.
        jepa_core.writing.UnwritableError: the folder cannot be written to.
    """
    names = encoder_names()
    if message := absent_message(name, names):
        raise ValueError(message)
    with _else_choose(names):
        return _weights(name, non_commercial=non_commercial, on_progress=on_progress)


def _weights(name: str, **options: Any) -> Path:
    """The weights of an encoder in the menu, downloaded if need be. options: those of fetch_encoder."""
    if name not in ENCODERS:
        return _inside_encoders(Path(folder_paths.get_full_path_or_raise(ENCODER_FOLDER, name)))
    if installed := _installed_file(name):
        return _inside_encoders(installed)
    folder = folder_to_write(ENCODER_FOLDER)
    file = _inside_encoders(folder / name / "model.safetensors")  # where it will be
    with writing_to(ENCODER_FOLDER):
        fetch_encoder(name, folder, **options)
    return file


@contextmanager
def _else_choose(names: Sequence[str]) -> Iterator[None]:
    """An error of a download begins with which of these names is installed: the page shows the beginning of a message."""
    try:
        yield
    except EncoderDownloadError as error:
        if here := default_installed(names):
            raise EncoderDownloadError(f"choose {here}, which is installed; {error}") from error
        raise


def clip_file(
    name: str, *, non_commercial: bool = False, on_progress: Callable[[int, int], None] | None = None
) -> Path:
    """As encoder_file, for a name among clip_names; downloads the tokenizer of a hub encoder too, beside the weights."""
    names = clip_names()
    if name not in names:
        raise ValueError(
            f"There is no CLIP {name!r}; put its folder, with model.safetensors, config.json, vocab.json and merges.txt, "
            f"into models/{ENCODER_FOLDER}, or choose one of {', '.join(filter(_is_clip, ENCODERS))}."
        )
    with _else_choose(names):
        try:
            file = _weights(name, non_commercial=non_commercial, on_progress=on_progress)
        except EncoderDownloadError as error:
            raise EncoderDownloadError(f"{error}, together with {' and '.join(TOKENIZER_FILES)}") from error
    inside(file, ENCODER_FOLDER, *tokenizer_files(file.parent))
    if name in ENCODERS:
        try:
            fetch_tokenizer(name, file.parent.parent)
        except UnwritableError as error:
            # not writing_to, whose advice moves what is downloaded later, but not these weights
            raise UnwritableError(
                f"{error}, or put {' and '.join(TOKENIZER_FILES)} of {ENCODERS[name].repo_id} into {file.parent} yourself"
            ) from error
    return file


def _inside_encoders(file: Path) -> Path:
    return inside(file, ENCODER_FOLDER, *neighbours(file))
