"""Convert a checkpoint of the public D-JEPA code to safetensors, for the folder models/djepa.

    python dev.py run tools/convert_djepa.py CHECKPOINT.pth OUT.safetensors

The pack itself loads no pickles. This script does, with torch's restricted unpickler, which creates only tensors and a
few plain types. It takes the exponential moving average if the checkpoint has one. It follows the public code's names;
no published checkpoint was available to try.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

sys.path.append(str(Path(__file__).absolute().parents[1]))
from jepa_core.djepa import DJEPAFileError, load_djepa


def weights_of(file: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint's moving average, else of its model, else of the file itself."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(file, weights_only=True, map_location="cpu")
    for name in ("model_ema", "model"):
        if isinstance(content.get(name), dict):
            content = content[name]
            break
    return {name: value.contiguous() for name, value in content.items() if isinstance(value, Tensor)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args(arguments)
    if options.out.suffix != ".safetensors":
        parser.error(f"OUT must end in .safetensors, got {options.out.name}")
    save_file(weights_of(options.checkpoint), options.out)
    try:
        config = load_djepa(options.out).model.config
    except DJEPAFileError:
        options.out.unlink()
        raise
    print(f"{options.out}: {config}")


if __name__ == "__main__":
    main()
