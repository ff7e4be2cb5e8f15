"""What guidance does, beside the methods that its paper compares with, judged by what did not guide.

    python dev.py results --folder WORK              draw, score and judge every arm; write figures and docs/results.md
    python dev.py results --folder WORK --finish     only of the pictures that are there
    python dev.py results --page                     only rewrite the tables of docs/results.md from the committed figures

Resumable at every batch. The arms are in arms.py, what is measured in measures.py, what is asked of whole sets in sets.py.
14 Euler steps, CFG 2; the guide is the encoder at 112 pixels, and its reference 300 training pictures of the class.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from research.effects.novelty import INPUTS
from research.harness import program
from research.harness.batches import BATCH, Arm, Study
from research.harness.images import UNGUIDED, Sampler
from research.harness.program import kept
from research.harness.timing import processor_seconds
from research.judges.effects import REAL
from research.results import page
from research.results.arms import ARMS, AUGMENTED, BATCHES, CONTROLS, GUIDED, METHODS, SEARCHES
from research.results.augmentation import FEW, SEEDS, augmentation
from research.results.figures import Figures, real_rows
from research.results.measures import Measures
from research.world.data import load_pictures

OUT = program.FIGURES / "results.json"
REALS = 600


def main(arguments: Sequence[str] | None = None) -> None:
    parser = program.parser(__file__, __doc__, OUT)
    parser.add_argument("--folder", type=Path, help="keeps what a stopped run resumes from")
    parser.add_argument("--world", type=Path, help="keeps the world's pictures; WORK by default")
    parser.add_argument("--finish", action="store_true", help="only judge what is there")
    parser.add_argument("--page", action="store_true", help="only rewrite the page from the figures")
    options = parser.parse_args(arguments)
    if options.page:
        page.rewrite()
        return
    if options.folder is None:
        parser.error("--folder is needed, unless --page is given")
    torch.set_num_threads(1)
    measures = open_study(options.folder, options.world or options.folder, options.encoder)
    if not options.finish:
        draw(measures.study)
    costs(measures.study)
    figures = Figures(measures)
    seconds, appraisal = figures.seconds(), appraisal_seconds(measures)
    record = {
        "settings": program.settings(parser, options, **measures.study.sampler.settings(), inputs=INPUTS),
        "arms": figures.by_arm(),
        "real": real_rows(measures, REALS),
        "sets": figures.by_set(),
        "seconds": seconds,
        "appraisal": round(appraisal, 3),
        "equal": figures.equal(seconds, appraisal),
        "augmentation": augmentation(
            measures, {arm: figures.arms[arm] for arm in AUGMENTED if arm in figures.arms}
        ),
    }
    program.write(options.out, record, page.table)
    page.draw(measures.study, record)
    page.rewrite()


def open_study(folder: Path, place: Path, encoder: Path) -> Measures:
    sampler = Sampler(encoder, image_size=112)
    world = load_pictures(place, SEEDS * FEW * len(sampler.classes), 2 * REAL, processes=1)
    return Measures(Study(folder, sampler, world, INPUTS), place)


def draw(study: Study) -> None:
    """Every prefix of the work is a whole experiment: batch by batch, all arms and classes of it."""
    for batch in range(max(BATCHES.values())):
        for arm, how in ARMS.items():
            for name in study.sampler.classes if batch < BATCHES[arm] else ():
                study.make(name, arm, how, batch)
    for batch in range(max(BATCHES.values())):  # what searches are compared with
        for name in study.sampler.classes:
            study.make(name, UNGUIDED, None, batch)


def costs(study: Study) -> None:
    """Time a batch of every arm that is compared, one after the other, after a run that is not counted.

    Other strengths take as long as strength 1, and variants of the score as the score does.
    """
    first = study.sampler.classes[0]
    compared = [*METHODS, *CONTROLS, *SEARCHES, *(arm for arm in GUIDED if not arm.startswith("score 1,"))]
    drawn = [arm for arm in compared if study.file(arm, first, 0).exists()]
    missing = [arm for arm in (UNGUIDED, *drawn) if not _cost_file(study, arm).exists()]
    if missing:
        study.sampled(first, Arm(), 0)
    for arm in missing:
        pictures, seconds, _ = study.sampled(first, ARMS[arm], 0)
        with program.whole(_cost_file(study, arm)) as partial:
            save_file({"seconds": torch.tensor(seconds / len(pictures))}, partial)
        print(f"cost of {arm}: {seconds / len(pictures):.2f} s", flush=True)


def _cost_file(study: Study, arm: str) -> Path:
    return study.folder / "costs" / f"{arm}.safetensors"


def appraisal_seconds(measures: Measures) -> float:
    """The processor's seconds to find how novel a picture is."""
    name = measures.study.sampler.classes[0]
    pictures = measures.pictures(UNGUIDED, name, 0)

    def time() -> program.Row:
        measures.novelty(pictures, name)
        return {
            "seconds": torch.tensor(processor_seconds(lambda: measures.novelty(pictures, name))[1] / BATCH)
        }

    return kept(measures.study.folder / "costs" / "appraisal.safetensors", time)["seconds"].item()


if __name__ == "__main__":
    main()
