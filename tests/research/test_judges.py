"""The independent measures, and the arithmetic of the evaluation, on small known cases."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torchvision.utils import make_grid

from research.effects.evaluation import ARMS, summarise
from research.harness import program
from research.harness.images import Sampler
from research.harness.program import append_row, read_rows
from research.harness.summary import complete_seeds, mean_and_error
from research.judges.measures import (
    CLASS_COUNT,
    Bank,
    Classifier,
    copy_distance,
    judge,
    judge_held_out,
    load_bank,
    load_classifier,
    neighbour_distance,
    untile,
)
from tests.conftest import ROOT


def small_bank(count: int = 12) -> Bank:
    generator = torch.Generator().manual_seed(0)
    return Bank(
        encoder=torch.randn(count, 384, generator=generator),
        classifier=torch.randn(count, 128, generator=generator),
        thumbnails=torch.rand(count, 3, 32, 32, generator=generator),
        labels=torch.arange(count) % CLASS_COUNT + 1,
        held_out=torch.arange(count) % 4 == 0,
        encoder_name="none",
    )


def test_neighbour_distance_is_the_mean_of_the_nearest_on_the_sphere() -> None:
    bank = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])
    found = neighbour_distance(torch.tensor([[5.0, 0.0]]), bank, neighbours=2)
    torch.testing.assert_close(found, torch.tensor([math.sqrt(2) / 2]))


def test_copy_distance_sees_copies_mirrored_and_enlarged() -> None:
    thumbnails = small_bank().thumbnails
    enlarged = thumbnails[3:5].repeat_interleave(2, -1).repeat_interleave(2, -2)
    copies = torch.cat([enlarged, enlarged.flip(-1)])
    assert copy_distance(copies, thumbnails).max() < 1e-3
    white = torch.ones(1, 3, 64, 64)
    torch.testing.assert_close(copy_distance(white, torch.zeros(1, 3, 32, 32)), torch.ones(1))


@pytest.mark.parametrize("count", [1, 33, 70])
def test_tiles_round_trip(count: int) -> None:
    pictures = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    sheet = make_grid(pictures, nrow=33, padding=0, pad_value=1)
    assert torch.equal(untile(sheet)[:count], pictures)


def test_judge_never_looks_at_held_out_images() -> None:
    bank, classifier = small_bank(), Classifier().eval()
    images = torch.nn.functional.interpolate(bank.thumbnails, scale_factor=2)
    found = judge(images, bank.labels, bank, classifier, lambda _: bank.encoder)
    assert all(value.shape == (12,) for value in found.values())
    assert found["copy_distance"][~bank.held_out].max() < 1e-3
    assert found["copy_distance"][bank.held_out].min() > 0.1
    assert "rarity_encoder" not in judge(images, bank.labels, bank, classifier, None)
    assert judge_held_out(bank, classifier)["copy_distance"] > 0.1


def test_mean_and_error() -> None:
    found = mean_and_error([1.0, 2.0, 3.0])
    assert (found["n"], found["mean"]) == (3, 2.0)
    assert found["standard_error"] == pytest.approx(1 / math.sqrt(3), abs=1e-5)
    assert mean_and_error([1.0])["standard_error"] is None


def test_summary_pairs_by_seed() -> None:
    values = {(0, "unguided"): 10.0, (1, "unguided"): 20.0, (2, "unguided"): 99.0}
    values |= {(0, "guided"): 9.0, (1, "guided"): 18.0}
    summary = summarise(values)
    assert summary["unguided"]["n"] == 3
    assert summary["guided"]["minus_unguided"] == {"n": 2, "mean": -1.5, "standard_error": 0.5}
    assert "minus_random" not in summary["guided"]
    assert "random" not in summary


def test_only_complete_seeds_count() -> None:
    values = {(seed, arm): 1.0 for seed in (3, 1) for arm in ARMS}
    assert complete_seeds(values | {(0, "guided"): 1.0}, list(ARMS)) == [1, 3]


def test_unfinished_lines_are_done_again(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    assert read_rows(file) == []
    append_row(file, {"seed": 0})
    with open(file, "a") as lines:
        lines.write('{"seed": 1, "trace": {}')
    append_row(file, {"seed": 2})
    assert read_rows(file) == [{"seed": 0}, {"seed": 2}]


def test_classes_come_in_turn_without_any() -> None:
    sampler = Sampler.__new__(Sampler)
    sampler.classes = ["a", "b"]
    assert [sampler.class_of(seed) for seed in range(3)] == ["a", "b", "a"]


def test_record_is_json(tmp_path: Path) -> None:
    for record in ({"settings": {"a": 1}, "images": [{"seed": 0}, {"seed": 1}]}, {"settings": {}}):
        program.write(tmp_path / "record.json", record, str)
        assert json.loads((tmp_path / "record.json").read_text()) == record
    program.write(tmp_path / "rows.json", {"images": [{"seed": 0}, {"seed": 1}]}, str)
    assert '\n  {"seed": 0},\n' in (tmp_path / "rows.json").read_text()


def test_the_command_of_a_record_repeats_the_run() -> None:
    file = str(ROOT / "research" / "effects" / "paths.py")
    parser = program.parser(file, "Title.\n\nMore.", ROOT / "figures.json", folder=True)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--arms", nargs="+", default=("a",))
    parser.add_argument("--no-count", action="store_true")
    start = "python dev.py run research/effects/paths.py --folder WORK"
    words = ["--folder", "/tmp/x", "--encoder", "/tmp/y", "--out", "/tmp/z"]
    assert program.command(parser, parser.parse_args(words)) == start
    more = ["--seeds", "2", "--arms", "b", "c", "--no-count"]
    assert program.command(parser, parser.parse_args([*words, *more])) == f"{start} {' '.join(more)}"


def test_committed_files_belong_together() -> None:
    bank, classifier = load_bank(), load_classifier()
    with torch.no_grad():
        named = classifier.head(bank.classifier).argmax(1) + 1 == bank.labels
    # Far from chance (1 in 7) on images that it has not seen, else it judges nothing.
    assert named[bank.held_out].float().mean() > 0.6
