"""The independent measures, and the arithmetic of the evaluation, on small known cases."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from research.effects.evaluation import ARMS, summarise
from research.harness import program
from research.harness.images import Sampler
from research.harness.program import append_row, read_rows
from research.harness.summary import complete_seeds, mean_and_error
from research.judges.classifier import Classifier, load_classifier, save_classifier
from research.judges.distances import copy_distance, thumbnails
from research.judges.measures import Bank, judge, judge_held_out, load_bank, neighbour_distance
from research.judges.train import accuracy
from research.judges.words import changes, one_in
from research.training.pictures import Pictures
from research.world import labels
from tests.conftest import ROOT


def small_bank(count: int = 12) -> Bank:
    generator = torch.Generator().manual_seed(0)
    return Bank(
        encoder=torch.randn(count, 384, generator=generator),
        classifier=torch.randn(count, 160, generator=generator),
        labels=torch.arange(count) % len(labels.CLASSES) + 1,
        held_out=torch.arange(count) % 4 == 0,
        encoder_name="none",
        image_size=112,
    )


def small_world(count: int = 24) -> Pictures:
    """Rows of the world with other pictures than it draws: flat ones, whose brightness says the class."""
    rows = labels.draw(7, count)
    images = (rows.classes * 40)[:, None, None, None].expand(count, 3, 128, 128).to(torch.uint8)
    held_out = torch.arange(count) % 3 == 0
    return Pictures(images, rows.classes, held_out, labels.CLASSES, "none", rows.attributes, labels.NAMES)


def test_neighbour_distance_is_the_mean_of_the_nearest_on_the_sphere() -> None:
    bank = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])
    found = neighbour_distance(torch.tensor([[5.0, 0.0]]), bank, neighbours=2)
    torch.testing.assert_close(found, torch.tensor([math.sqrt(2) / 2]))


def test_copy_distance_sees_copies() -> None:
    trained = torch.rand(5000, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    copies = trained[[3, 4999]].repeat_interleave(4, -1).repeat_interleave(4, -2)
    assert copy_distance(copies, trained).max() < 1e-3
    white = torch.ones(1, 3, 64, 64)
    torch.testing.assert_close(copy_distance(white, torch.zeros(1, 3, 32, 32)), torch.ones(1))


def test_thumbnails_are_of_all_pictures() -> None:
    found = thumbnails(small_world())
    assert found.shape == (24, 3, 32, 32)
    torch.testing.assert_close(found[1], torch.full((3, 32, 32), 80 / 255))


def test_judge_never_looks_at_held_out_images() -> None:
    bank, classifier = small_bank(), Classifier().eval()
    images = torch.rand(12, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    found = judge(images, bank.labels, bank, classifier, lambda _: bank.encoder)
    assert all(value.shape == (12,) for value in found.values())
    own = neighbour_distance(bank.encoder, bank.encoder[~bank.held_out])
    assert torch.equal(found["rarity_encoder"], own)
    assert "rarity_encoder" not in judge(images, bank.labels, bank, classifier, None)
    assert judge_held_out(bank, classifier).keys() == found.keys()


def test_rarity_is_that_of_what_the_classifier_sees() -> None:
    bank, classifier = small_bank(), Classifier().eval()
    images = torch.rand(12, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    found = judge(images, bank.labels, bank, classifier, None)
    with torch.no_grad():
        seen = classifier.values(classifier.features(images), bank.labels)
    for row in range(12):
        shares = [
            described.shares[value]
            for value, (owner, described) in zip(seen[row].tolist(), labels.COLUMNS, strict=True)
            if owner == bank.labels[row]
        ]
        assert found["rarity_world"][row].item() == pytest.approx(-math.log(math.prod(shares)), rel=1e-5)
        assert (seen[row] >= 0).sum() == len(shares)


def test_the_loss_counts_only_attributes_that_a_picture_has() -> None:
    world, classifier = small_world(), Classifier().eval()
    assert world.attributes is not None
    pixels = world.pixels()
    features = classifier.features(pixels)
    expected, offset, count = F.cross_entropy(classifier.head(features), world.labels - 1), 0, 0
    terms = torch.zeros(())
    for column, (_, described) in enumerate(labels.COLUMNS):
        size = len(described.values)
        logits = classifier.attributes(features)[:, offset : offset + size].log_softmax(1)
        for row, value in enumerate(world.attributes[:, column].tolist()):
            if value >= 0:
                terms, count = terms - logits[row, value], count + 1
        offset += size
    torch.testing.assert_close(
        classifier.loss(pixels, world.labels, world.attributes), expected + terms / count
    )


def test_a_classifier_of_another_world_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_classifier(Classifier(), tmp_path / "own.safetensors", {})
    load_classifier(tmp_path / "own.safetensors")
    monkeypatch.setattr("research.judges.classifier.CLASSES", ("dog", *labels.CLASSES[1:]))
    with pytest.raises(ValueError, match="another world"):
        load_classifier(tmp_path / "own.safetensors")


def test_accuracy_is_the_share_named_rightly() -> None:
    world = small_world()
    found = accuracy(Perfect(world), world)
    assert (found["class"], found["attributes"]) == (1.0, 1.0)
    assert world.attributes is not None
    wrong = world.attributes.clone()
    wrong[:6, 0] = (wrong[:6, 0] + 1).where(wrong[:6, 0] >= 0, -1)
    found = accuracy(Perfect(world._replace(attributes=wrong)), world)
    assert found["class"] == 1.0
    assert found["each"][labels.NAMES[0]] == pytest.approx(0.75)  # 1 robot of 4
    assert found["attributes"] == pytest.approx(1 - 0.25 / len(labels.NAMES), abs=1e-4)


class Perfect(Classifier):
    """Knows what a world's pictures show."""

    def __init__(self, world: Pictures) -> None:
        super().__init__()
        self.world = world

    def features(self, pixels: Tensor) -> Tensor:
        return torch.eye(len(self.world.labels))

    def probabilities(self, features: Tensor) -> Tensor:
        return F.one_hot(self.world.labels - 1, len(labels.CLASSES)).float()

    def values(self, features: Tensor, classes: Tensor) -> Tensor:
        assert self.world.attributes is not None
        return self.world.attributes


def test_what_changed_is_said_in_words() -> None:
    before = labels.draw(7, 1).attributes[0]
    after = before.clone()
    described = labels.COLUMNS[0][1]
    before[0], after[0] = described.values.index("antenna"), described.values.index("horns")
    assert changes(before, after) == [f"top: antenna \N{RIGHTWARDS ARROW} horns ({one_in(0.1)})"]
    assert changes(before, before) == []
    words = [one_in(share).replace("\N{NO-BREAK SPACE}", " ") for share in (0.0004, 0.04, 0.4, 1.0)]
    assert words == ["1 in 2,500", "1 in 25", "40%", "100%"]


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
    parser.add_argument("--inputs", nargs="*", default=())
    start = "python dev.py run research/effects/paths.py --folder WORK"
    words = ["--folder", "/tmp/x", "--encoder", "/tmp/y", "--out", "/tmp/z"]
    assert program.command(parser, parser.parse_args(words)) == start
    more = ["--seeds", "2", "--arms", "b", "c", "--no-count", "--inputs", "preset=as is"]
    found = program.command(parser, parser.parse_args([*words, *more]))
    assert found.startswith(start)
    assert shlex.split(found)[-len(more) :] == more


def test_committed_files_belong_together() -> None:
    bank, classifier = load_bank(), load_classifier()
    with torch.no_grad():
        named = classifier.probabilities(bank.classifier).argmax(1) + 1 == bank.labels
    assert named[bank.held_out].float().mean() >= 0.99


def test_the_committed_classifier_is_accurate() -> None:
    found = json.loads((ROOT / "research" / "judges" / "classifier.json").read_text())["accuracy"]
    assert found["held_out"]["class"] >= 0.99
    assert found["held_out"]["attributes"] >= 0.97
    assert min(found["held_out"]["each"].values()) >= 0.95
