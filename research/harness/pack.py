"""Loads the repository as the package jepa_guidance, as a host loads a custom node folder."""

import importlib
import importlib.util
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).absolute().parents[2]
PACK = "jepa_guidance"


def load_pack() -> None:
    """Make jepa_guidance importable; ComfyUI must be importable already. Later calls do nothing.

    jepa_core is one package under two names, so that a class seen through either is the same class. The host computes
    on the processor where there is no CUDA; it raises on import otherwise.
    """
    if PACK in sys.modules:
        return
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()
    spec = importlib.util.spec_from_file_location(
        PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None
    assert spec.loader is not None
    pack = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = pack
    for file in sorted((ROOT / "jepa_core").rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        sys.modules[f"{PACK}.{name}"] = importlib.import_module(name)
    pack.jepa_core = sys.modules["jepa_core"]  # type: ignore[attr-defined]
    spec.loader.exec_module(pack)
