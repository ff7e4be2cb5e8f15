"""JEPAPromptMap on a small random encoder: planted groups, lists, and the sheet."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from jepa_guidance.host.drawing.group_sheet import Block, group_sheet
from jepa_guidance.host.encoders.host_encoder import combined
from jepa_guidance.host.scoring.scores import score_images
from jepa_guidance.nodes.prompt_map import JEPAPromptMap
from jepa_guidance.nodes.reference import JEPAReferenceNode

OUTPUTS = [output.display_name for output in JEPAPromptMap.define_schema().outputs]
KINDS = [0, 1, 0, 2, 0, 1, 0, 2, 0, 1]  # of the pictures below


@pytest.fixture
def images() -> torch.Tensor:
    """Ten pictures: three that differ, each with little noise."""
    generator = torch.Generator().manual_seed(0)
    smooth = torch.rand(3, 3, 2, 2, generator=generator)
    kinds = torch.nn.functional.interpolate(smooth, size=(28, 28), mode="bilinear").movedim(1, -1)
    noise = torch.rand(10, 28, 28, 3, generator=generator)
    return 0.98 * kinds[KINDS] + 0.02 * noise


def mapped(images: list, encoder: Any, **changes: Any) -> SimpleNamespace:
    """The node's outputs by name. Inputs are lists, as the host passes them."""
    values = {"groups": 3, "mode": "exact"} | changes
    lists = {name: value if name == "seeds" else [value] for name, value in values.items()}
    with torch.inference_mode():
        found = JEPAPromptMap.execute(images=images, encoder=[encoder], **lists).args
    return SimpleNamespace(**dict(zip(OUTPUTS, found, strict=True)))


@pytest.mark.parametrize("groups", [0, 3])
def test_pictures_that_look_alike_are_a_group(tiny, images, groups):
    found = mapped([images[:4], images[4:]], tiny.encoder, groups=groups, seeds=list(range(100, 110)))
    (scores,) = score_images(images, tiny.encoder)
    assert found.groups == KINDS
    for kind in range(3):
        members = sorted((i for i in range(10) if KINDS[i] == kind), key=scores.__getitem__)
        assert (found.rarest[kind], found.typical[kind]) == (members[0], members[-1])
        assert found.medoids[kind] in members
    assert found.seeds == [100 + index for index in found.rarest]
    assert torch.equal(found.images[0], images[found.rarest])


def test_by_novelty_the_rarest_is_the_furthest_from_the_reference(tiny, images):
    lists = {"mode": ["no scores"], "top_k": [9], "fit": ["squash"], "antialias": [True]}
    with torch.inference_mode():
        reference = JEPAReferenceNode.execute(images=[images[:1]], encoder=[tiny.encoder], **lists).args[0]
    found = mapped([images], tiny.encoder, groups=1, by="novelty", reference=reference)
    assert KINDS[found.rarest[0]] != 0
    assert found.typical == [0]
    assert found.groups == [0] * 10
    assert found.seeds == []


def test_a_set_of_encoders_makes_one_map(tiny, images):
    both = combined([(tiny.encoder, 3.0), (replace(tiny.encoder, image_size=42), 1.0)])
    assert mapped([images], both).groups == KINDS


def test_one_picture_and_pictures_of_several_sizes(tiny, images):
    alone = mapped([images[:1]], tiny.encoder, groups=4)
    assert (alone.groups, alone.rarest, alone.typical, alone.medoids) == ([0], [0], [0], [0])
    larger = torch.nn.functional.interpolate(images.movedim(-1, 1), size=(42, 56)).movedim(1, -1)
    found = mapped([images[:1], larger[1:2]], tiny.encoder, groups=2)
    assert [tuple(image.shape) for image in found.images] == [(1, 28, 28, 3), (1, 42, 56, 3)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": 65}, "groups 65 is outside 0 to 64"),
        ({"mode": "top-k"}, "mode must be one of auto, projected, exact"),
        ({"by": "novelty"}, "reference is needed to rank by novelty"),
        ({"seeds": [1, 2]}, "seeds holds 2 seeds for 10 images"),
    ],
)
def test_values_that_do_not_fit_are_refused(tiny, images, changes, message):
    with pytest.raises(ValueError, match=message):
        mapped([images], tiny.encoder, **changes)


def test_the_sheet_shows_every_picture_of_every_block():
    red = torch.zeros(8, 8, 3)
    red[..., 0] = 1
    sizes = {}
    for count in (1, 3, 5):
        sheet = group_sheet(
            [Block("group", [red] * 3, ["one\ntwo"] * 3)] * (count - 1) + [Block("g", [red], ["x"])]
        )
        pixels = (sheet[0] * 255).round().int()
        shown = (pixels == torch.tensor([255, 0, 0])).all(-1).sum().item()
        assert shown == 256 * 256 * (3 * (count - 1) + 1)
        sizes[count] = tuple(sheet.shape[1:3])
    assert sizes[5][1] == 2 * sizes[3][1]
    assert sizes[5][0] == sizes[3][0] > 2 * sizes[1][0]
