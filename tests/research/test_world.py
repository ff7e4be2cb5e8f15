"""The demo world: its frequencies, and that what is drawn is what the label says."""

import hashlib
import math
import platform
import shutil
import subprocess
from collections import Counter
from itertools import combinations, product
from pathlib import Path

import pytest
import torch
from scipy.stats import chi2_contingency, chisquare

from research.world import data, labels, renderer
from research.world.classes import DESIGNS, KINDS, attribute, attribution

ROWS = 24_000
PIXELS = "9ec618e5db3581af8965af84e01d96b3e54cbfce8c9ffd64c44e814b1e3d9b98"


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """The renderer, installed into a folder of its own."""
    if missing := [name for name in ("node", "npm") if shutil.which(name) is None]:
        pytest.skip(f"{missing[0]} is not installed")
    try:
        return renderer.install(tmp_path_factory.mktemp("renderer"))
    except subprocess.CalledProcessError as error:
        pytest.skip(f"the packages cannot be fetched: {error}")


def test_the_written_frequencies_are_distributions_with_a_tail():
    for _, found in labels.COLUMNS:
        assert math.isclose(sum(found.shares), 1), found
        assert len(set(found.values)) == len(set(found.drawn)) == len(found.shares) >= 2, found
        assert list(found.shares) == sorted(found.shares, reverse=True), found
        assert found.shares[-1] <= 0.18 < found.shares[0], found
    assert attribute("eyes eye: a 75, b=c 20, none 5") == (
        "eyes", "eye", ("a", "b", "none"), ("a", "c", None), (0.75, 0.2, 0.05),
    )  # fmt: skip


def test_nothing_about_people_is_rare():
    skin = {"skinColor", "hair", "face"}
    for kind in KINDS:
        assert not skin & {found.option for found in kind.attributes}
        assert set(kind.uniform) <= skin | {"rotate", "translateX", "translateY"}
        words = {str(value).lower() for options in kind.uniform.values() for value in options}
        words |= {str(value).lower() for found in kind.attributes for value in found.drawn}
        assert not any(part in word for word in words for part in ("hijab", "turban", "beard", "mustache"))
        natural = [found.shares[:3] for found in kind.attributes if found.name == "hair_colour"]
        assert all(len(set(shares)) == 1 for shares in natural)
    rows = labels.split("rarest", 6000)  # what is uniform stays so among the rarest
    counts = rows.uniform.mul(8).long()
    for column in counts.T:
        assert chisquare(column.bincount(minlength=8)).pvalue > 1e-4


def test_labels_have_the_written_frequencies_and_are_independent():
    rows = labels.split("training", ROWS)
    for number, kind in enumerate(KINDS, 1):
        columns = [i for i, (owner, _) in enumerate(labels.COLUMNS) if owner == number]
        mine = rows.attributes[rows.classes == number]
        assert len(mine) == ROWS // len(KINDS)
        others = [i for i in range(len(labels.COLUMNS)) if i not in columns]
        assert (mine[:, others] == -1).all()
        for i, found in zip(columns, kind.attributes, strict=True):
            seen = mine[:, i].bincount(minlength=len(found.shares))
            expected = torch.tensor(found.shares, dtype=torch.float64) * len(mine)
            assert chisquare(seen, expected).pvalue > 1e-4, found
        for i, j in combinations(columns, 2):
            wide = int(mine[:, j].max()) + 1
            table = (mine[:, i] * wide + mine[:, j]).bincount(minlength=wide * (int(mine[:, i].max()) + 1))
            table = table.reshape(-1, wide)
            common = table[(table.sum(1) > 200)][:, table.sum(0) > 200]  # chi-square wants full cells
            assert chi2_contingency(common).pvalue > 1e-5, (labels.NAMES[i], labels.NAMES[j])


@pytest.mark.parametrize("name", labels.SPLITS)
def test_a_row_does_not_depend_on_how_many_are_asked_for(name):
    few, many = labels.split(name, 100), labels.split(name, 3000)
    assert all(torch.equal(a, b[:100]) for a, b in zip(few, many, strict=True))
    assert many.classes[:7].tolist() == [1, 2, 3, 4, 5, 6, 1]
    assert not torch.equal(few.attributes, labels.draw(99, 100).attributes)


def test_log_frequency_is_the_product_of_the_written_shares():
    rows = labels.draw(1, 200)
    for row, found in zip(rows.attributes, labels.log_frequency(rows.attributes), strict=True):
        product = 1.0
        for value, (_, described) in zip(row.tolist(), labels.COLUMNS, strict=True):
            product *= described.shares[value] if value >= 0 else 1
        assert math.isclose(math.exp(found), product, rel_tol=1e-12)


def test_the_tail_counts_every_combination():
    rows = labels.draw(3, 240)
    mine = rows.take(rows.classes == 6)
    every = [math.prod(chosen) for chosen in product(*(found.shares for found in KINDS[5].attributes))]
    assert math.isclose(sum(every), 1)
    for log, found in zip(
        labels.log_frequency(mine.attributes), labels.tail(mine.classes, mine.attributes), strict=True
    ):
        as_rare = sum(share for share in every if share <= math.exp(log) * (1 + 1e-9))
        assert math.isclose(found, as_rare, rel_tol=1e-9)


def test_the_reference_holds_the_rarest_twentieth_of_each_class():
    rare, usual = labels.split("rarest", 1200), labels.split("training", ROWS)
    assert labels.tail(rare.classes, rare.attributes).max() <= labels.RAREST
    tails, chance = labels.tail(usual.classes, usual.attributes), labels.RAREST
    for number in range(1, len(KINDS) + 1):
        share = (tails[usual.classes == number] <= chance).double().mean()
        assert 0.8 * chance < share < 1.2 * chance


def test_a_label_sets_its_own_option_and_no_other():
    rows = labels.draw(5, 60)
    for column, (number, found) in enumerate(labels.COLUMNS):
        mine = rows.take(rows.classes == number)
        options = []
        for value in range(len(found.values)):
            mine.attributes[:, column] = value
            options.append([row["options"] for row in labels.drawings(mine)])
        for made in zip(*options, strict=True):
            own = {found.option, f"{found.option}Probability"}
            rest = [{k: v for k, v in option.items() if k not in own} for option in made]
            assert all(other == rest[0] for other in rest)
            assert [(option[found.option] or [None])[0] for option in made] == list(found.drawn)


def test_attribution_names_every_designer_and_licence():
    readme = Path(data.__file__).with_name("README.md").read_text()
    for kind in KINDS:
        design = DESIGNS[kind.style]
        assert all(
            part in attribution() for part in (design.title, design.designer, design.source, design.licence)
        )
        assert all(part in readme for part in design)


def test_a_binary_is_chosen_by_platform_or_refused():
    assert renderer.binary("Linux", "x86_64", "glibc") == "@resvg/resvg-js-linux-x64-gnu@2.6.2"
    assert renderer.binary("Linux", "x86_64", "") == "@resvg/resvg-js-linux-x64-musl@2.6.2"
    assert renderer.binary("Darwin", "arm64", "") == "@resvg/resvg-js-darwin-arm64@2.6.2"
    assert renderer.binary("Windows", "AMD64", "") == "@resvg/resvg-js-win32-x64-msvc@2.6.2"
    with pytest.raises(SystemExit, match="No renderer is pinned for linux-riscv64-gnu"):
        renderer.binary("Linux", "riscv64", "glibc")


def test_the_packages_state_the_licences(script):
    for style, design in DESIGNS.items():
        text = (script.parent / "node_modules" / "@dicebear" / style / "LICENSE").read_text()
        assert f"Source: {design.title} ({design.source})" in text
        assert f"Designer: {design.designer} ({design.homepage})" in text
        assert f"License: {design.licence} ({design.terms})" in text


def test_what_is_drawn_is_what_the_label_says(script):
    rows = labels.draw(6, 600)
    for row, made in zip(labels.drawings(rows), renderer.drawn(script, labels.drawings(rows)), strict=True):
        for option, chosen in row["options"].items():
            if isinstance(chosen, list) and option != "backgroundColor":
                drawn = made["parts"].get(option)
                if option.endswith("Color"):
                    drawn = (drawn or "").removeprefix("#")
                assert drawn == (chosen[0] if chosen else None), (row, option, made["parts"])
    seen = Counter(labels.values(row)["top"] for row in rows.attributes[rows.classes == 1])
    assert seen["antenna"] > seen["bulb"] > seen["horns"]


def test_every_value_changes_the_picture_wherever_it_is_drawn(script):
    for column, (number, found) in enumerate(labels.COLUMNS):
        mine = labels.draw(7, 24).take(slice(number - 1, None, len(KINDS)))
        variants = []
        for value in range(len(found.values)):
            mine.attributes[:, column] = value
            variants += list(labels.drawings(mine))
        drawn = torch.tensor(renderer.pixels(script, variants, 64)).int()
        drawn = drawn.reshape(len(found.values), len(mine.classes), 64, 64, 3)
        for i, j in combinations(range(len(found.values)), 2):
            changed = ((drawn[i] - drawn[j]).abs().amax(-1) > 40).sum((1, 2))
            assert changed.min() >= 10, (labels.NAMES[column], found.values[i], found.values[j], changed)


def test_nothing_is_cut_off(script):
    for name in labels.SPLITS:
        rows = labels.split(name, 900)
        drawn = renderer.pixels(script, labels.drawings(rows), 64)
        edges = drawn[:, 0].min((1, 2)), drawn[:, :, 0].min((1, 2)), drawn[:, :, -1].min((1, 2))
        for edge in edges:  # a bust ends where the picture does
            assert (edge > 250).all(), [labels.values(row) for row in rows.attributes[edge <= 250]]


def test_pictures_do_not_depend_on_processes_or_interruptions(script, monkeypatch):
    monkeypatch.setattr(data, "BLOCK", 60)
    folder = script.parent
    assert data.make(folder, "held_out", 100, 32, processes=2) == 120
    once = data.read(folder, "held_out", 100, 32)
    files = sorted((folder / data.world_id(32)).iterdir())
    assert [file.name for file in files] == ["held_out-0000.npy.xz", "held_out-0001.npy.xz"]
    files[0].unlink()
    assert data.make(folder, "held_out", 70, 32, processes=1) == 60
    assert torch.equal(data.read(folder, "held_out", 70, 32), once[:70])
    alone = renderer.pixels(script, labels.drawings(labels.split("held_out", 100).take(slice(90, 100))), 32)
    assert torch.equal(torch.tensor(alone).permute(0, 3, 1, 2), once[90:])


def test_trainings_get_pictures_with_their_labels(script, monkeypatch):
    monkeypatch.setattr(data, "BLOCK", 60)
    pictures = data.load_pictures(script.parent, 70, 12, side=32)
    assert pictures.images.shape == (82, 3, 32, 32)
    unseen, rows = pictures.unseen(), labels.split("held_out", 12)
    assert torch.equal(unseen.images, data.read(script.parent, "held_out", 12, 32))
    assert torch.equal(unseen.labels, rows.classes)
    assert unseen.attributes is not None
    assert torch.equal(unseen.attributes, rows.attributes)
    assert len(pictures.trained_on().labels) == 70


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the hash was recorded on x86-64")
def test_pixels_are_those_that_were_recorded(script):
    rows = labels.split("training", 12)
    assert hashlib.sha256(renderer.pixels(script, labels.drawings(rows), 64)).hexdigest() == PIXELS
