"""The names in the D-JEPA loader's menu, and their files."""

from pathlib import Path

from ..comfy.model_folders import DJEPA_FOLDER, files_in_menu, inside
from ..comfy.required import folder_paths
from .autoencoder import TOKENIZER

# The D-JEPA that comes with the pack: its name in the menu, and its file.
DJEPA_DEMO = "avatars (comes with this pack)"
DJEPA_DEMO_FILE = Path(__file__).absolute().parents[2] / "assets" / "djepa128.safetensors"


def djepa_tokenizer(name: str) -> Path | None:
    """The file of the tokenizer that a D-JEPA named in the menu has beside it; None for those that bring their own."""
    return TOKENIZER if name == DJEPA_DEMO else None


def djepa_names() -> list[str]:
    """Names for the menu: the D-JEPA of this pack, then all .safetensors files in models/djepa."""
    return [DJEPA_DEMO, *files_in_menu(DJEPA_FOLDER)]


def djepa_file(name: str) -> Path:
    """Return the file of a D-JEPA named in the menu.

    Raises:
        ValueError: a name that is not in the menu, or a link that leads out of the model folders.
    """
    if name == DJEPA_DEMO:
        return DJEPA_DEMO_FILE
    if name not in djepa_names():
        raise ValueError(
            f"There is no D-JEPA {name!r:.200}; put its .safetensors file into models/{DJEPA_FOLDER}, or "
            f"choose {DJEPA_DEMO!r}."
        )
    return inside(Path(folder_paths.get_full_path_or_raise(DJEPA_FOLDER, name)), DJEPA_FOLDER)
