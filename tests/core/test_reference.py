"""References: exact through a file, merged, thinned; files of any other content are refused by name."""

from __future__ import annotations

import json
import pickle
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from jepa_core import Reference, ReferenceFileError, load_reference, save_reference
from jepa_core.novelty import Nearest
from jepa_core.reference import FORMAT, NO_SCORE, ReferencePart, merged, percentile
from tests.core.test_hostile_files import QUICK, join, little_memory, split

HOW = {"mode": "exact", "fit": "squash", "antialias": "on"}
DOUBLE = torch.float64


def reference_of(count: int = 5, *, seed: int = 0, how: dict | None = None, **changes: Any) -> Reference:
    """Random parts of two encoders; `changes` are fields of the first."""
    generator = torch.Generator().manual_seed(seed)
    how = HOW | (how or {})
    parts = []
    for name, length in (("one", 4), ("two", 3)):
        own = {"encoder": name, "fingerprint": name * 3, "image_size": 28}
        own |= {
            field: torch.randn(count, length, generator=generator) for field in ("embeddings", "smoothed")
        }
        if how["mode"] != NO_SCORE:
            own["scores"] = torch.randn(count, dtype=DOUBLE, generator=generator)
        parts.append(ReferencePart(**own | (changes if name == "one" else {})))
    return Reference(tuple(parts), how)


def same(one: Reference, other: Reference) -> bool:
    """Equal to the bit."""
    fields = ("encoder", "fingerprint", "image_size")
    return (
        one.how == other.how
        and len(one.parts) == len(other.parts)
        and all(
            all(getattr(a, field) == getattr(b, field) for field in fields)
            and torch.equal(a.embeddings, b.embeddings)
            and torch.equal(a.smoothed, b.smoothed)
            and (a.scores is b.scores is None or torch.equal(a.scores, b.scores))
            for a, b in zip(one.parts, other.parts, strict=True)
        )
    )


# --- files that are right -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["exact", NO_SCORE])
@pytest.mark.parametrize("count", [1, 5])
def test_a_reference_comes_back_bit_for_bit(tmp_path, mode, count):
    reference = reference_of(count, how={"mode": mode}, encoder="Ein Encoder, \u00e9\u4e2d")
    save_reference(reference, tmp_path / "a.safetensors")
    with torch.inference_mode():
        found = load_reference(tmp_path / "a.safetensors")
    assert same(found, reference)
    assert len(found) == count
    assert not found.parts[0].embeddings.is_inference()


def test_saving_replaces_a_file_and_leaves_nothing_else(tmp_path):
    file = tmp_path / "a.safetensors"
    save_reference(reference_of(), file)
    before = load_reference(file)
    save_reference(reference_of(3, seed=1), file)
    assert len(load_reference(file)) == 3
    assert same(before, reference_of())  # not a view of the file
    assert list(tmp_path.iterdir()) == [file]


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "a.safetensors"
    save_reference(reference_of(), file)

    def full(*args: Any) -> None:
        args[1].write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("jepa_core.reference.save_file", full)
    with pytest.raises(OSError, match="No space"):
        save_reference(reference_of(3), file)
    assert same(load_reference(file), reference_of())
    assert list(tmp_path.iterdir()) == [file]


def test_a_hundred_thousand_embeddings_load_and_are_searched_quickly(tmp_path):
    points = torch.randn(100_000, 384, generator=torch.Generator().manual_seed(0))
    reference = Reference((ReferencePart("one", "x", 224, points, points.clone()),), HOW | {"mode": NO_SCORE})
    save_reference(reference, tmp_path / "a.safetensors")
    begun = time.process_time()
    (part,) = load_reference(tmp_path / "a.safetensors").parts
    distance = Nearest(part.embeddings)(points[:1] + 1)
    assert distance.shape == (1,)
    assert time.process_time() - begun < 10


# --- each once ----------------------------------------------------------------------------------------------------


def embedded(points: torch.Tensor, *others: torch.Tensor) -> Reference:
    """A reference without scores whose parts have these embeddings."""
    parts = (
        ReferencePart(str(number), str(number), 28, own, own + 1)
        for number, own in enumerate([points, *others])
    )
    return Reference(tuple(parts), HOW | {"mode": NO_SCORE})


def each_once(points: torch.Tensor) -> list[int]:
    """The places of points that are not within a fiftieth of the spread of an earlier one that was kept, pair by pair."""
    spread = (points - points.mean(0)).norm(dim=1).square().mean().sqrt()
    kept: list[int] = []
    for place, point in enumerate(points):
        if all((point - points[one]).norm() > spread / 50 for one in kept):
            kept.append(place)
    return kept


@pytest.mark.parametrize("shift", [0.0, 30.0])  # embeddings around zero, or all of much the same direction
@pytest.mark.parametrize("count", [2, 3, 40, 700])
def test_distinct_are_the_first_of_those_that_are_the_same(count, shift):
    generator = torch.Generator().manual_seed(count)
    own = torch.randn(count, 24, generator=generator) + shift
    saved_again = own[::2] + 0.004 * torch.randn(len(own[::2]), 24, generator=generator)
    points = torch.cat([own, saved_again, own[:1]])[
        torch.randperm(len(own) + len(own[::2]) + 1, generator=generator)
    ]
    expected = each_once(points)
    assert len(expected) == count
    reference = embedded(points)
    (part,) = reference.distinct.parts
    assert torch.equal(part.embeddings, points[expected])
    assert torch.equal(part.smoothed, points[expected] + 1)
    assert len(reference) == len(points)


def test_a_reference_without_repetitions_is_its_own_distinct_one():
    for count in (1, 2, 30):
        reference = embedded(torch.randn(count, 16, generator=torch.Generator().manual_seed(count)))
        assert reference.distinct is reference


def test_pictures_that_are_all_the_same_are_one():
    assert len(embedded(torch.ones(30, 16)).distinct) == 1


def test_pictures_are_the_same_only_if_all_encoders_say_so():
    points = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    twice, other = points[[0, 1, 2, 0, 1, 5]], points[[0, 1, 2, 0, 4, 5]]
    reference = embedded(twice, other).distinct
    for part, own in zip(reference.parts, (twice, other), strict=True):
        assert torch.equal(part.embeddings, own[[0, 1, 2, 4, 5]])


def test_a_reference_merged_with_itself_says_the_same():
    reference = reference_of(40)
    assert same(merged([reference, reference]).distinct, reference.distinct)


# --- merging, thinning --------------------------------------------------------------------------------------------


def test_merged_references_hold_all_pictures_in_order():
    first, second = reference_of(5), reference_of(2, seed=1)
    both = merged([first, second])
    assert len(both) == 7
    for part, a, b in zip(both.parts, first.parts, second.parts, strict=True):
        assert torch.equal(part.embeddings, torch.cat([a.embeddings, b.embeddings]))
        assert torch.equal(part.smoothed, torch.cat([a.smoothed, b.smoothed]))
        assert torch.equal(part.scores, torch.cat([a.scores, b.scores]))
    turned = Reference(second.parts[::-1], second.how)  # encoders in another order
    assert same(merged([first, turned]), both)
    assert same(merged([first]), first)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"how": {"fit": "crop"}}, "reference_2 was made with fit crop, reference_1 with squash"),
        ({"how": {"mode": NO_SCORE}}, "reference_2 was made with mode no scores, reference_1 with exact"),
        (
            {"image_size": 56},
            "reference_2 was made with one at 56 px, two at 28 px, reference_1 with one at 28 px",
        ),
        ({"fingerprint": "1234567890"}, r"reference_2 was made with one at 28 px \(weights 12345678\)"),
    ],
)
def test_references_that_differ_are_not_merged(changes, message):
    with pytest.raises(ValueError, match=message):
        merged([reference_of(), reference_of(2, **changes)])
    with pytest.raises(ValueError, match="links_b was made"):
        merged([reference_of(), reference_of(2, **changes)], ["links_a", "links_b"])


def test_a_thinned_reference_keeps_some_of_the_same_pictures_in_every_part():
    whole = reference_of(40)
    few = whole.thinned(10, seed=3)
    assert len(few) == 10
    rows = [whole.parts[0].embeddings.tolist().index(one) for one in few.parts[0].embeddings.tolist()]
    assert rows == sorted(set(rows))
    for part, all_ in zip(few.parts, whole.parts, strict=True):
        assert torch.equal(part.embeddings, all_.embeddings[rows])
        assert torch.equal(part.smoothed, all_.smoothed[rows])
        assert torch.equal(part.scores, all_.scores[rows])
    assert same(whole.thinned(10, seed=3), few)
    assert not same(whole.thinned(10, seed=4), few)
    assert whole.thinned(40) is whole


@QUICK
@given(st.lists(st.integers(-3, 3), min_size=1), st.integers(-4, 4))
def test_a_percentile_is_the_share_below(others, value):
    expected = sum((one < value) + (one == value) / 2 for one in others) / len(others)
    assert percentile(value, sorted(others)) == pytest.approx(100 * expected)


# --- files that are wrong -----------------------------------------------------------------------------------------


def refusal(file: Path) -> str:
    with pytest.raises(ReferenceFileError) as refused, little_memory():
        load_reference(file)
    assert file.name in str(refused.value)
    return str(refused.value)


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> bytes:
    file = tmp_path_factory.mktemp("good") / "a.safetensors"
    save_reference(reference_of(), file)
    return file.read_bytes()


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("spoiled") / "spoiled.safetensors"


def test_missing_files_and_folders(tmp_path):
    assert "does not exist" in refusal(tmp_path / "none.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    refusal(tmp_path / "folder.safetensors")


class Harmful:
    def __reduce__(self) -> tuple:
        return (pytest.fail, ("a pickle was loaded",))


@pytest.mark.parametrize("content", [b"", b"x", bytes(1000)])
def test_other_kinds_of_files(spoiled, content):
    spoiled.write_bytes(content)
    assert "damaged" in refusal(spoiled)


@pytest.mark.parametrize("content", [pickle.dumps(Harmful()), b"PK\x03\x04" + bytes(100)])
def test_a_pickle(spoiled, content):
    spoiled.write_bytes(content)
    assert "as torch.save writes" in refusal(spoiled)


def test_a_pickle_of_torch(spoiled):
    torch.save({"reference": Harmful()}, spoiled)
    assert "as torch.save writes" in refusal(spoiled)


def test_tensors_of_another_program(spoiled):
    for header in (None, {"format": "pt"}):
        save_file({"weight": torch.zeros(3)}, spoiled, header)
        assert "is not a reference; save one with JEPA Save Reference" in refusal(spoiled)


@pytest.mark.parametrize("keep", [0.02, 0.3, 0.9, 0.999])
def test_a_file_cut_off(good, spoiled, keep):
    spoiled.write_bytes(good[: int(keep * len(good))])
    assert "damaged" in refusal(spoiled)


def written(file: Path, tensors: dict[str, torch.Tensor], **changes: Any) -> Path:
    """A file with the header of a reference of one part; `changes` are entries of the header or of that part."""
    part = {"encoder": "one", "fingerprint": "x", "image_size": 28}
    part |= {name: changes.pop(name) for name in list(changes) if name in part}
    stated = {"parts": [part], "how": HOW | {"mode": NO_SCORE}} | changes
    save_file(tensors, file, {"format": FORMAT, "reference": json.dumps(stated)})
    return file


GOOD = {"0.embeddings": torch.zeros(5, 4), "0.smoothed": torch.zeros(5, 4)}
SCORES = {"0.scores": torch.zeros(5, dtype=DOUBLE)}
EXACT = {"how": HOW}


@pytest.mark.parametrize(
    ("tensors", "changes", "message"),
    [
        ({"0.embeddings": None}, {}, "0.embeddings"),
        ({"0.smoothed": None}, {}, "0.smoothed"),
        ({"0.embeddings": torch.zeros(5)}, {}, "values to unpack"),
        ({"0.embeddings": torch.zeros(5, 4, 1)}, {}, "values to unpack"),
        ({"0.embeddings": torch.tensor(1.0)}, {}, "is not a valid reference"),
        ({"0.embeddings": torch.zeros(0, 4), "0.smoothed": torch.zeros(0, 4)}, {}, "has 0 embeddings"),
        ({"0.embeddings": torch.zeros(5, 0), "0.smoothed": torch.zeros(5, 0)}, {}, "of length 0"),
        ({"0.embeddings": torch.zeros(1, 70_000)}, {}, "of length 70000"),
        ({"0.embeddings": torch.zeros(5, 4).half()}, {}, "not F32"),
        ({"0.embeddings": torch.zeros(5, 4).double()}, {}, "not F32"),
        ({"0.embeddings": torch.zeros(5, 4).int()}, {}, "not F32"),
        ({"0.embeddings": torch.zeros(5, 4) / 0}, {}, "NaN"),
        ({"0.smoothed": torch.full((5, 4), torch.inf)}, {}, "NaN or infinite"),
        ({"0.smoothed": torch.zeros(4, 4)}, {}, "0.smoothed is F32"),
        ({"0.smoothed": torch.zeros(5, 3)}, {}, "0.smoothed is F32"),
        ({}, EXACT, "does not fit its tensors"),
        (SCORES, {}, "does not fit its tensors"),
        ({"0.scores": torch.zeros(5)}, EXACT, "0.scores is F32"),
        ({"0.scores": torch.zeros(4, dtype=DOUBLE)}, EXACT, "0.scores is F64"),
        ({"0.scores": torch.full((5,), torch.nan, dtype=DOUBLE)}, EXACT, "NaN"),
        ({}, {"image_size": 0}, "image size 0"),
        ({}, {"image_size": -1}, "image size -1"),
        ({}, {"image_size": 10**30}, "image size 1000"),
        ({}, {"image_size": 28.5}, "image size 28.5"),
        ({}, {"image_size": float("inf")}, "image size inf"),
        ({}, {"image_size": "28"}, "image size '28'"),
        ({}, {"image_size": None}, "image size None"),
        ({}, {"parts": []}, "1 to 16 parts"),
        ({}, {"parts": [{}] * 17}, "1 to 16 parts"),
        ({}, {"parts": {"0": 1}}, "1 to 16 parts"),
        ({}, {"parts": ["text"]}, "is not a valid reference"),
        ({}, {"parts": [None]}, "is not a valid reference"),
        ({}, {"parts": [{"image_size": 28}]}, "encoder"),
        ({}, {"how": None}, "is not a valid reference"),
        ({}, {"how": {"mode": NO_SCORE}}, "its settings are"),
        ({}, {"how": HOW | {"mode": "top 0"}}, "its mode is 'top 0'"),
        ({}, {"how": HOW | {"fit": "evil"}}, "its fit is 'evil' and its antialias 'on'"),
        ({}, {"how": HOW | {"antialias": "True"}}, "its fit is 'squash' and its antialias 'True'"),
        ({}, {"how": HOW | {"mode": "projected on 99999 outputs"}}, "does not fit embeddings of length"),
        ({}, {"how": HOW | {"mode": NO_SCORE, "more": "x"}}, "its settings are"),
        ({}, {"more": "x" * 70_000}, "header is too long"),
    ],
)
def test_contents_that_do_not_belong_together(spoiled, tensors, changes, message):
    complete = {name: tensor for name, tensor in (GOOD | tensors).items() if tensor is not None}
    written(spoiled, complete, **changes)
    with pytest.raises(ReferenceFileError, match=message):
        load_reference(spoiled)
    refusal(spoiled)


def test_parts_of_different_pictures(spoiled):
    one = {"encoder": "one", "fingerprint": "x", "image_size": 28}
    more = {"1.embeddings": torch.zeros(4, 4), "1.smoothed": torch.zeros(4, 4)}
    written(spoiled, GOOD | more, parts=[one, one])
    assert "1.embeddings is F32 [4, 4], not F32 [5, 4]" in refusal(spoiled)


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[]", "3", '"x"', "{}", "[" * 60_000, '{"how": {}, "parts": ' + "[" * 50_000]
)
def test_headers_that_are_not_json_or_nested_deeply(spoiled, text):
    save_file(GOOD, spoiled, {"format": FORMAT, "reference": text})
    refusal(spoiled)


def test_a_file_of_many_tensors_reads_only_its_own(spoiled):
    many = {f"junk.{number}": torch.zeros(1) for number in range(20_000)}
    written(spoiled, GOOD | many)
    assert len(load_reference(spoiled)) == 5


@pytest.mark.parametrize(
    "shape", [[0, 2**62], [2**62, 0], [2**40, 2**40], [2**31, 4], [-1, 4], [5, 4, 0], [1e3, 4], "x"]
)
def test_shapes_that_the_file_does_not_hold(good, spoiled, shape):
    header, data = split(good)
    header["0.embeddings"]["shape"] = shape
    if isinstance(shape, list) and 0 in shape:
        header["0.embeddings"]["data_offsets"] = [0, 0]
    spoiled.write_bytes(join(header, data))
    refusal(spoiled)


@QUICK
@given(edits=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=6))
def test_any_bytes_changed(good, spoiled, edits):
    """The file loads as a reference with finite numbers, or is refused by its name."""
    content = bytearray(good)
    for place, value in edits:
        content[int(place * len(content))] = value
    spoiled.write_bytes(content)
    refused = ""
    try:
        with little_memory():
            reference = load_reference(spoiled)
    except ReferenceFileError as error:
        refused = str(error)
    if refused:
        assert spoiled.name in refused
        return
    for part in reference.parts:
        assert part.embeddings.shape == part.smoothed.shape
        assert len(part.embeddings) == len(reference)
        assert part.embeddings.isfinite().all()


def test_a_header_longer_than_the_file(good, spoiled):
    spoiled.write_bytes(struct.pack("<Q", 2**63) + good[8:])
    assert "damaged" in refusal(spoiled)
