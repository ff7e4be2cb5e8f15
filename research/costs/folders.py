"""What does scoring a folder cost: is the encoder kept busy, and what would a million pictures take?

    python dev.py run research/costs/folders.py --folder WORK

WORK gets pictures of three kinds: renders (PNG, 1024 px), photos of a phone (JPEG, 12 megapixels) and pictures as they lie
in data sets (JPEG, 512 px), made of the photos of scikit-image. Each is scored as the command does, and
right before and after by the encoder alone, from prepared tensors in memory, so that both see the same machine. Reading
alone is one thread. The bytes are those of the table and the journal.
"""

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from jepa_core import load_encoder
from jepa_core.folders.journal import Journal
from jepa_core.folders.run import Reader, Run, rows_of, score_files
from jepa_core.folders.scorer import Scorer, Settings
from jepa_core.folders.table import write_table
from jepa_core.reference import NO_SCORE, mode_of
from jepa_core.score import PROJECTION
from research.harness import program
from research.harness.pictures import photos
from research.harness.program import Row, markdown
from research.harness.timing import timed

# Kind -> (width, height, how a file is saved)
KINDS: dict[str, tuple[int, int, dict[str, str | int]]] = {
    "PNG, 1024 x 1024": (1024, 1024, {"format": "PNG"}),
    "JPEG, 4000 x 3000": (4000, 3000, {"format": "JPEG", "quality": 92}),
    "JPEG, 512 x 512": (512, 512, {"format": "JPEG", "quality": 90}),
}
MODES = {mode_of({"projection": PROJECTION}): 2, NO_SCORE: 24}  # pictures of a block
ROUNDS = 2
MANY = (10**6, 10**9)


def files(folder: Path, kind: str, count: int) -> list[str]:
    """Paths of pictures of a kind, made unless they are there."""
    width, height, how = KINDS[kind]
    place = folder / kind
    place.mkdir(parents=True, exist_ok=True)
    found = []
    for (name, picture), _ in zip(pictures(), range(count), strict=False):
        file = place / f"{name}.{str(how['format']).lower()}"
        if not file.exists():
            shown = to_pil_image(picture.movedim(-1, 0)).resize((width, height), Image.Resampling.LANCZOS)
            with program.whole(file) as partial:
                shown.save(partial, **how)
        found.append(str(file))
    return found


def pictures() -> Iterator[tuple[str, Tensor]]:
    """(name, picture) of photos, then of their mirror images and of those upside down."""
    some = list(photos())
    for way, axes in (("", ()), (", mirrored", (1,)), (", upside down", (0,))):
        yield from ((f"{name}{way}", picture.flip(axes)) for name, picture in some)


def scored(paths: Sequence[str], scorer: Scorer) -> tuple[Run, Row]:
    """Score files as the command does, and the bytes that a picture takes in the journal and in the table."""
    with TemporaryDirectory() as name:
        journal_file, table_file = Path(name) / "journal", Path(name) / "scores.parquet"
        with Journal(journal_file, scorer.settings) as journal:
            run = score_files(paths, scorer, journal)
            write_table(table_file, scorer.settings, scorer.encoder.embed_dim, rows_of(run, journal))
        sizes = {"journal": journal_file.stat().st_size, "table": table_file.stat().st_size}
    return run, {f"{what}_bytes": round(size / len(paths)) for what, size in sizes.items()}


def measure(paths: Sequence[str], scorer: Scorer, rounds: int) -> Row:
    """Seconds a picture: by the encoder alone, by the command, and of one thread that reads."""
    read, reading = timed(lambda: [Reader(scorer, lambda _: True)(path) for path in paths])
    prepared = [one.prepared for one in read if one.prepared is not None]
    some = [prepared[i : i + scorer.batch] for i in range(0, len(prepared), scorer.batch)]

    def alone() -> float:
        return timed(lambda: [scorer.score(batch) for batch in some])[1] / len(paths)

    alone()  # the first passes are slower
    before, ratios, seconds, waited = alone(), [], [], []
    for _ in range(rounds):
        run, sizes = scored(paths, scorer)
        after = alone()
        seconds.append(run.seconds / len(paths))
        ratios.append((before + after) / 2 / seconds[-1])
        waited.append(run.waiting / run.seconds)
        before = after
    return {
        "pictures": len(paths),
        "reading_seconds": round(reading / len(paths), 4),
        "command_seconds": round(statistics.median(seconds), 4),
        "rate_to_encoders": round(statistics.median(ratios), 3),
        "rates_to_encoders": [round(ratio, 3) for ratio in ratios],
        "waited": round(statistics.median(waited), 3),
        **sizes,
    }


def model(row: Row) -> Row:
    """What many pictures would take at these rates on one machine: hours, and GB of journal and table."""
    stored = row["journal_bytes"] + row["table_bytes"]
    return {
        f"{many:.0e}": {
            "hours": round(many * row["command_seconds"] / 3600, 1),
            "gigabytes": round(many * stored / 1e9, 1),
        }
        for many in MANY
    }


def table(figures: Row) -> str:
    """A row for each kind of file and of score."""
    columns = {
        "pictures": "{kind}",
        "scores": "{mode}",
        "s a picture": "{command_seconds:.3f}",
        "of the encoder's own rate": "{rate_to_encoders:.0%}",
        "the encoder waited": "{waited:.1%}",
        "reading, s a picture on one thread": "{reading_seconds:.3f}",
        "10^6: hours": "{hours:.0f}",
        "10^9: years": "{years:.0f}",
    }
    rows = [
        {
            **row,
            "hours": row["model"]["1e+06"]["hours"],
            "years": row["model"]["1e+09"]["hours"] / 24 / 365.25,
        }
        for row in figures["rows"]
    ]
    return markdown(columns, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = program.parser(__file__, __doc__, program.FIGURES / "folders.json", folder=True)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args(arguments)
    encoder = load_encoder(options.encoder)
    rows = []
    for mode, count in MODES.items():
        name = options.encoder.name
        scorer = Scorer(
            encoder, Settings(name, encoder.fingerprint, encoder.image_size, "squash", "on", mode)
        )
        for kind in KINDS:
            found = measure(files(options.folder, kind, count), scorer, options.rounds)
            rows.append({"kind": kind, "mode": mode, **found, "model": model(found)})
            print(rows[-1], flush=True)
    program.write(options.out, {"settings": program.settings(parser, options), "rows": rows}, table)


if __name__ == "__main__":
    main()
