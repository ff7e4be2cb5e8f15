"""The frame of a program: its options, what its figures are of, and files that survive a run that is stopped."""

import argparse
import hashlib
import json
import os
import platform
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from research.harness.pack import ROOT

FIGURES = ROOT / "research" / "figures"
Row = dict[str, Any]


def parser(
    file: str, doc: str | None, out: Path | None = None, *, folder: bool = False, encoder: bool = True
) -> argparse.ArgumentParser:
    """The options that programs share: --folder, which keeps what a run resumes from, --out and --encoder.

    Args:
        file, doc: __file__ and __doc__ of the program.
        out: where its figures go by default.
    """
    name = Path(file).absolute().relative_to(ROOT).as_posix()
    made = argparse.ArgumentParser(f"python dev.py run {name}", description=(doc or "").partition("\n")[0])
    if folder:
        made.add_argument("--folder", type=Path, required=True, help="keeps what a stopped run resumes from")
    if out:
        made.add_argument("--out", type=Path, default=out, help="where the figures go")
    if encoder:
        default = os.environ.get("JEPA_ENCODER")  # argparse makes a Path of it
        made.add_argument("--encoder", type=Path, default=default, help="encoder folder")
    return made


def command(made: argparse.ArgumentParser, options: argparse.Namespace) -> str:
    """The command line of a run; its folder is WORK, other paths are left out."""
    words = [made.prog]
    for name, value in vars(options).items():
        if name == "folder":
            words += ["--folder", "WORK"]
        elif not isinstance(value, Path) and value != made.get_default(name):
            values = value if isinstance(value, list | tuple) else [] if value is True else [value]
            words += [f"--{name.replace('_', '-')}", *(shlex.quote(str(value)) for value in values)]
    return " ".join(words)


def settings(made: argparse.ArgumentParser, options: argparse.Namespace, **more: Any) -> Row:
    """What every record begins with: the command, the encoder, the software and the machine."""
    found: Row = {"command": command(made, options), **more}
    if hasattr(options, "encoder"):
        found["encoder"] = encoder_identity(options.encoder)
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads"
    return found | {"torch": torch.__version__, "machine": machine}


def encoder_identity(folder: Path) -> str:
    """The name of an encoder folder and the sha256 of its weights."""
    return f"{folder.name} {sha256(folder / 'model.safetensors')}"


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def write(out: Path, record: Row, table: Callable[[Row], str]) -> None:
    """Write a record as JSON, each of its "images" in a line, and print its table."""
    images = ",\n  ".join(map(json.dumps, record.get("images", [])))
    text = json.dumps(record | ({"images": []} if images else {}), indent=1)
    out.write_text(text.replace('"images": []', f'"images": [\n  {images}\n ]') + "\n")
    print(f"{table(record)}\nwrote {out}")


def markdown(columns: Mapping[str, str], rows: Iterable[Row]) -> str:
    """A table in Markdown; columns: heading -> format of a cell, as "{seconds:.1f}", "" where a row lacks that."""

    def cell(text: str, row: Row) -> str:
        with suppress(KeyError, TypeError):  # missing, or None
            return text.format_map(row)
        return ""

    lines = [list(columns), ["---"] * len(columns)]
    lines += [[cell(text, row) for text in columns.values()] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def read_rows(file: Path) -> list[Row]:
    """The JSON lines of a file, without those that a killed process left unfinished."""
    rows = []
    for line in file.read_text().splitlines() if file.exists() else []:
        with suppress(ValueError):
            rows.append(dict(json.loads(line)))
    return rows


def append_row(file: Path, row: Row) -> None:
    """Add a JSON line in one write, on a new line even after one that was left unfinished."""
    with open(file, "a") as lines:
        lines.write(f"\n{json.dumps(row)}\n")


@contextmanager
def whole(file: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `file` at the end of the block."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    yield partial
    partial.replace(file)


def kept(file: Path, make: Callable[[], Row], image: Tensor | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file, made where it is missing, or where it was made of another `image`."""
    if file.exists():
        found = load_file(file)
        if image is None or torch.equal(found["image"], image):
            return found
    made = {name: tensor.contiguous() for name, tensor in make().items()}
    made |= {} if image is None else {"image": image}
    with whole(file) as partial:
        save_file(made, partial)
    return made
