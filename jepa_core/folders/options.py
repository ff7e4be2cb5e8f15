"""What commands have in common: messages, encoders, devices, and how pictures are seen and scored."""

import argparse
import errno
import os
from pathlib import Path

import torch

from ..encoder import Encoder
from ..hub import ENCODERS, fetch_encoder
from ..loading import load_encoder
from ..reference import NO_SCORE, Reference, load_reference, mode_of
from ..score import PROJECTION
from .scorer import Scorer, Settings


class OptionError(ValueError):
    """An option of a command cannot be used. The message names it, its value and the fix."""


def refused(option: str, value: object, why: object) -> OptionError:
    """The error for an option's value."""
    return OptionError(f"{option} {value}: {why}")


def add_scoring(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add the options that scorer_of reads.

    Args:
        required: an encoder must be named.
    """
    group = parser.add_argument_group("encoder and scores")
    group.add_argument(
        "--encoder",
        required=required,
        metavar="E",
        help="a folder with config.json and model.safetensors, a .safetensors file, or a name of the Hugging Face hub: "
        + ", ".join(ENCODERS),
    )
    group.add_argument(
        "--models",
        type=Path,
        default=Path.home() / ".cache" / "jepa",
        metavar="FOLDER",
        help="where encoders from the hub are kept (default: %(default)s)",
    )
    group.add_argument(
        "--non-commercial",
        action="store_true",
        help="agree to licences that forbid commercial use",
    )
    group.add_argument("--image-size", type=int, default=224, metavar="N", help="in pixels (default: 224)")
    group.add_argument(
        "--fit",
        choices=("squash", "crop"),
        default="squash",
        help="squash pictures to a square, or crop them (default: squash)",
    )
    group.add_argument(
        "--no-antialias", action="store_true", help="shrink pictures as the authors' code does"
    )
    mode = group.add_mutually_exclusive_group()
    mode.add_argument("--exact", action="store_true", help="exact scores: many times slower")
    mode.add_argument(
        "--projection",
        type=whole_number,
        metavar="K",
        help=f"scores on K fixed random outputs (default: {PROJECTION})",
    )
    mode.add_argument(
        "--top-k", type=whole_number, metavar="K", help="scores by the K largest singular values"
    )
    mode.add_argument("--no-score", action="store_true", help="embeddings only: many times faster")
    group.add_argument(
        "--device", metavar="D", help="cpu, cuda, cuda:1 or mps (default: cuda if there is one)"
    )
    group.add_argument(
        "--batch", type=whole_number, metavar="N", help="pictures scored together (default: by device)"
    )
    group.add_argument(
        "--threads", type=whole_number, metavar="N", help="that read pictures (default: one a core)"
    )


def whole_number(text: str) -> int:
    """Parse an option that is 1 at least."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def scorer_of(options: argparse.Namespace) -> Scorer:
    """The scorer that the options of add_scoring describe.

    Raises:
        OptionError: an encoder, device or number that cannot be used.
    """
    encoder = _encoder(options, _device(options.device))
    return _scorer(options, encoder)


def _scorer(options: argparse.Namespace, encoder: Encoder) -> Scorer:
    counts = {"top_k": options.top_k, "projection": options.projection}
    if not (options.exact or options.top_k):
        counts["projection"] = options.projection or PROJECTION
    settings = Settings(
        Path(options.encoder).name,
        encoder.fingerprint,
        encoder.image_size,
        fit=options.fit,
        antialias="off" if options.no_antialias else "on",
        mode=NO_SCORE if options.no_score else mode_of(counts),
    )
    try:
        return Scorer(encoder, settings)
    except ValueError as error:
        name = "top-k" if options.top_k else "projection"
        raise refused(f"--{name}", counts[name.replace("-", "_")], error) from error


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = f"not a device of this machine; use cpu ({str(error).splitlines()[0][:100]})"
        raise refused("--device", name, why) from error
    return device


def _encoder(options: argparse.Namespace, device: torch.device) -> Encoder:
    name = options.encoder
    try:
        if os.path.exists(name):
            path = Path(name)
        elif name in ENCODERS:
            path = fetch_encoder(name, options.models, non_commercial=options.non_commercial)
        else:
            raise refused(
                "--encoder",
                name,
                f"no such file or folder, and no known name; those are {', '.join(ENCODERS)}",
            )
        return load_encoder(path, device=device, image_size=options.image_size)
    except OptionError:
        raise
    except (ValueError, OSError) as error:
        if "image_size" in str(error):
            raise refused("--image-size", options.image_size, error) from error
        said = str(error).replace("Turn non_commercial on", "Add --non-commercial")
        raise refused("--encoder", name, said) from error


def reference_named(option: str, file: Path) -> Reference:
    """Load a reference. Raises OptionError."""
    try:
        return load_reference(file)
    except (ValueError, OSError) as error:
        raise refused(option, file, error) from error


def check_output(file: Path, suffix: str) -> None:
    """Raise OptionError unless --out can be a new file with this suffix, or replaces one."""
    if file.suffix != suffix:
        raise refused("--out", file, f"the name must end in {suffix}")
    if file.is_dir():
        raise refused("--out", file, "is a folder; name a file in it")
    if not file.parent.is_dir():
        raise refused("--out", file, f"there is no folder {file.parent}; make it first")
    if not os.access(file.parent, os.W_OK):
        raise refused("--out", file, f"the folder {file.parent} may not be written; name another")


def need_packages() -> None:
    """Raise OptionError before any work if a package is missing."""
    try:
        import pyarrow.parquet  # noqa: F401 (only whether they are there)
        import tqdm  # noqa: F401
    except ImportError as error:
        raise OptionError(f'{error.name} is missing; pip install "jepa-guidance[folders]"') from error


def unwritable(file: Path, error: OSError) -> OptionError:
    """The error for an output that could not be written, after work has begun."""
    fix = "; make room and run again, which goes on from here" if error.errno == errno.ENOSPC else ""
    return refused("--out", file, f"it cannot be written ({error.strerror or error}){fix}")
