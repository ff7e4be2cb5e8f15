"""What does it take to change an input that needs no new pass of the encoder, with what is kept of the last run and without?

    python dev.py run research/costs/answers.py

Nodes run as the host runs them, preview included, on one batch of the demo generator's pictures. Each change is made after
the first run of its node, and again after all that is kept was forgotten; the outputs of the two are compared bit by bit.
Seconds are the process's own, whatever else the machine does: with one thread, those of an idle machine. Some minutes.

Conclusion: with what is kept every change is answered in less than a second, with the same bits.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from research.harness import program
from research.harness.pack_api import (
    HiddenHolder,
    HostEncoder,
    JEPARankImages,
    JEPARarityMap,
    JEPAScoreImage,
    answers,
    demo,
    load_host_encoder,
)
from research.harness.program import Row, markdown
from research.harness.sampling import draw
from research.harness.timing import processor_seconds

PICTURES, SEED, STEPS = 8, 0, 14
IMAGE_SIZE = 112  # at which the encoder sees them, as in the templates
VIEW: Row = {"fit": "squash", "antialias": True}
SCORED: Row = {"mode": "projected", "top_k": 9, **VIEW}
RANKED: Row = {"keep": "rarest", "count": 4, "mode": "projected"}


class Case(NamedTuple):
    """What runs after a first run: a node and its inputs beside images and encoder."""

    name: str
    node: Any
    inputs: Row


MAPPED: Row = {"opacity": 0.65, **VIEW}
# (node, inputs) of a first run -> what follows it and needs no new pass of the encoder
CASES = (
    (
        (JEPARankImages, RANKED),
        (
            Case("JEPA Rank Images: count 4 to 6", JEPARankImages, RANKED | {"count": 6}),
            Case(
                "JEPA Rank Images: keep the most typical", JEPARankImages, RANKED | {"keep": "most typical"}
            ),
            Case("JEPA Score Image after JEPA Rank Images", JEPAScoreImage, SCORED),
        ),
    ),
    (
        (JEPARarityMap, MAPPED),
        (
            Case("JEPA Rarity Map: opacity 0.65 to 0.3", JEPARarityMap, MAPPED | {"opacity": 0.3}),
            Case("JEPA Rarity Map: grow 0 to 8", JEPARarityMap, MAPPED | {"grow": 8}),
        ),
    ),
)


@torch.inference_mode()
def pictures(count: int, steps: int) -> Tensor:
    """Pictures (N, 128, 128, 3) of robots."""
    model, vae = demo.load_demo_generator()
    prompts = map(demo.demo_conditioning, ("robot", "any"))
    found: Tensor = vae.decode(draw(model, *prompts, seed=SEED, count=count, steps=steps))
    return found


@torch.inference_mode()
def outputs(node: Any, inputs: Row, images: Tensor, encoder: HostEncoder) -> tuple:
    """What a node gives out, run as the host runs it: a node that takes lists gets every input as a list."""
    node.hidden = HiddenHolder.from_dict(None)
    values = {"images": images, "encoder": encoder, **inputs}
    if node.define_schema().is_input_list:
        values = {name: [value] for name, value in values.items()}
    found: tuple = node.execute(**values).result
    return found


def same(one: Any, other: Any) -> bool:
    """Whether two outputs are equal bit by bit."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    # what stands for nothing to give has no value
    return type(one) is type(other) and (one == other or not isinstance(one, str | int | float))


def measured(
    first: tuple[Any, Row], cases: Sequence[Case], images: Tensor, encoder: HostEncoder
) -> list[Row]:
    """Seconds of a first run, and of each case after it and with nothing kept; and whether the two give the same."""
    answers.known.clear()
    _, begun = processor_seconds(lambda: outputs(*first, images, encoder))
    kept = [processor_seconds(partial(outputs, *case[1:], images, encoder)) for case in cases]
    size = answers.known.bytes
    rows = []
    for case, (answer, seconds) in zip(cases, kept, strict=True):
        answers.known.clear()
        asked, without = processor_seconds(partial(outputs, *case[1:], images, encoder))
        rows.append(
            {
                "case": case.name,
                "first": round(begun, 2),
                "kept": round(seconds, 3),
                "without": round(without, 2),
                "same": "yes" if same(answer, asked) else "no",
                "MiB": round(size / (1 << 20), 3),
            }
        )
        print(rows[-1], flush=True)
    return rows


def table(figures: Row) -> str:
    columns = {
        "change": "{case}",
        "first run, s": "{first:.1f}",
        "change, s": "{kept:.2f}",
        "change with nothing kept, s": "{without:.1f}",
        "same bits": "{same}",
        "kept, MiB": "{MiB:.3f}",
    }
    return markdown(columns, figures["table"])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = program.parser(__file__, __doc__, program.FIGURES / "answers.json")
    options = parser.parse_args(arguments)
    encoder = load_host_encoder(options.encoder, options.encoder.name, IMAGE_SIZE)
    images = pictures(PICTURES, STEPS)
    outputs(JEPAScoreImage, SCORED, images[:1], encoder)  # the first pass of all takes longer
    rows = [row for first, cases in CASES for row in measured(first, cases, images, encoder)]
    settings = {"pictures": PICTURES, "side": images.shape[1], "image_size": IMAGE_SIZE}
    record = {"settings": program.settings(parser, options, **settings), "table": rows}
    program.write(options.out, record, table)


if __name__ == "__main__":
    main()
