"""Check guidance in a real server on a CUDA card, every way that users reach it, in minutes and without a network.

    python dev.py gpu --prepare DIR                             make the bundle, on a machine with a network
    python dev.py gpu --bundle DIR [--out FILE] [--minutes 8]   run it, on the machine with the card
    python dev.py gpu --dry-run [--out FILE]                    every stage on a processor, at tiny sizes

The machine with the card needs Python 3.12 with torch and transformers; nothing is installed there. The program unpacks
host and packages into a temporary folder, writes models of the published shapes with random weights, and starts a
server with the host's defaults. tools/gpu/stages.py has the checks.

It writes a JSON file after every row: {"command", "machine", "finished", "seconds", "stages": [{"name", "ok",
"seconds", "rows", "error"}]}. A failed row has the error and the ends of the traceback and of the server's log.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from tools.environment.building import SetupError
from tools.environment.components import cache_folder
from tools.environment.pinned import ROOT
from tools.gpu.bundle import BundleError, Unpacked, check_kernels, prepare, unpack
from tools.gpu.plan import FULL, TINY
from tools.gpu.rows import Row, Stage, run_stages, table
from tools.gpu.session import Session
from tools.gpu.stages import STAGES, driver

OUT = ROOT / ".work" / "gpu.json"
MINUTES = 8.0
# Reserved for stopping servers and writing the last row.
LAST_SECONDS = 15.0
FILES_BYTES = 18_000_000_000
NO_CARD = "torch sees no CUDA device here; --dry-run runs every stage on a processor"
MACHINE_FACTS = (
    "device",
    "card_GiB",
    "python",
    "torch",
    "host",
    "comfy-aimdo",
    "comfy-kitchen",
    "kitchen_backends",
    "transformers",
    "safetensors",
    "numpy",
    "triton",
)


def writer(out: Path) -> Callable[[Row], None]:
    """A function that writes the record to `out`; a reader finds the old one or the new one, never a part."""
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(out.name + ".tmp")

    def write(record: Row) -> None:
        for stage in record["stages"]:
            for row in stage["rows"]:
                record["machine"] |= {name: row[name] for name in MACHINE_FACTS if name in row}
        unfinished.write_text(json.dumps(record, indent=1) + "\n")
        unfinished.replace(out)

    return write


def fast_folder(bytes_needed: int) -> Path | None:
    """The faster of memory and disk, by writing 256 MiB, among those with enough space; None if neither has."""
    block = bytes(1 << 25)
    found: dict[Path, float] = {}
    for folder in (Path("/dev/shm"), Path(tempfile.gettempdir())):
        if not folder.is_dir() or shutil.disk_usage(folder).free < bytes_needed:
            continue
        with tempfile.TemporaryFile(dir=folder) as file:
            begun = time.monotonic()
            for _ in range(8):
                file.write(block)
            os.fsync(file.fileno())
            found[folder] = time.monotonic() - begun
    return min(found, key=lambda folder: found[folder]) if found else None


def has_cuda() -> bool:
    """Whether torch sees a card."""
    import torch

    return torch.cuda.is_available()


def host_of_set_up() -> Unpacked:
    """The host and interpreter that dev.py set up. Raises BundleError if it did not."""
    host = os.environ.get("JEPA_HOST")
    if not host:
        raise BundleError("JEPA_HOST is not set: run this with `python dev.py gpu --dry-run`")
    return Unpacked(Path(host), ROOT, sys.executable)


def stages_with_kernels(unpacked: Unpacked) -> dict[str, Stage]:
    """STAGES, beginning with a check that comfy-kitchen's kernels run on this card."""
    first = STAGES["environment"]

    def environment(session: Session) -> Iterator[Row]:
        yield dict(check_kernels(unpacked))
        yield from first(session)

    return STAGES | {"environment": environment}


def measure(options: argparse.Namespace) -> Row:
    """Run the stages, write the record and return it. Raises BundleError if they cannot start."""
    begun = time.monotonic()
    plan = TINY if options.dry_run else FULL
    if not plan.cpu and not has_cuda():
        raise BundleError(NO_CARD)
    with ExitStack() as stack:
        parent = None if plan.cpu else fast_folder(FILES_BYTES)
        temporary = tempfile.TemporaryDirectory(prefix="jepa-gpu-", dir=parent, ignore_cleanup_errors=True)
        work = Path(stack.enter_context(temporary))
        unpacked = unpack(options.bundle, work) if options.bundle else host_of_set_up()
        if plan.cpu:
            # compiling for a processor takes longer than everything else
            os.environ |= {"CUDA_VISIBLE_DEVICES": "", "TORCHDYNAMO_DISABLE": "1"}
        deadline = begun + 60 * options.minutes - LAST_SECONDS
        session = Session(plan, unpacked.host, unpacked.python, work, [unpacked.site], deadline)
        stack.callback(session.stop)
        record: Row = {
            "command": "python dev.py gpu " + " ".join(words_of(options)),
            "machine": machine(work, plan.cpu),
            "finished": False,
            "seconds": 0.0,
            "stages": [],
        }
        stages = stages_with_kernels(unpacked) if options.bundle and not plan.cpu else STAGES
        run_stages(stages, session, record, writer(options.out))
    return record


def words_of(options: argparse.Namespace) -> list[str]:
    """The arguments that decide what runs."""
    return [
        *(["--bundle DIR"] if options.bundle else []),
        *(["--dry-run"] if options.dry_run else []),
        *([f"--minutes {options.minutes:g}"] if options.minutes != MINUTES else []),
    ]


def machine(work: Path, cpu: bool) -> Row:
    """What is known about the machine before a server runs; the server reports the rest."""
    facts: Row = {"system": platform.platform(), "processors": os.cpu_count()}
    if not cpu:
        facts |= {"driver": driver(), "files_in": "memory" if work.is_relative_to("/dev/shm") else "disk"}
    return facts


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    summary, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="dev.py gpu",
        description=summary,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--prepare", type=Path, metavar="DIR", help="make a bundle")
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="the bundle to run from")
    parser.add_argument("--dry-run", action="store_true", help="on a processor, at tiny sizes")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE", help="the JSON to write")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="time limit")
    options = parser.parse_args(arguments)
    if options.prepare and (options.bundle or options.dry_run):
        parser.error("--prepare excludes --bundle and --dry-run")
    if not (options.prepare or options.bundle or options.dry_run):
        parser.error("one of --prepare, --bundle and --dry-run is required")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 if every stage ran, whatever it found, else 1."""
    options = parse(arguments)
    # ending this program ends its servers
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if options.prepare:
            cache = cache_folder(os.environ, platform.system(), Path.home())
            size = prepare(options.prepare, cache, host_of_set_up().host)
            print(f"{options.prepare}: {size / (1 << 20):.1f} MiB")
            return 0
        record = measure(options)
    except (BundleError, SetupError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(record))
    print(f"wrote {options.out}")
    return 0 if record["finished"] else 1


if __name__ == "__main__":
    sys.exit(main())
