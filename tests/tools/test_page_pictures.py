"""The table of tools/page_pictures.py names pictures that pages show, and nodes that its templates have."""

from __future__ import annotations

import pytest
from PIL import Image

from tests.conftest import ROOT
from tools.page_pictures import HELP, SCENES, THUMBNAILS, chosen
from tools.page_scenes import Scene, Sheet, Tile, put_together, save

PICTURES = [(scene, picture) for scene in SCENES for picture in scene.pictures]
PAGES = (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))

each_picture = pytest.mark.parametrize(
    ("scene", "picture"), PICTURES, ids=[picture.file for _, picture in PICTURES]
)


def is_shown(file: str) -> bool:
    """Whether a page shows this picture, or the list of templates does."""
    folder, _, name = file.rpartition("/")
    if folder == THUMBNAILS:
        return (ROOT / file).with_suffix(".json").is_file()
    pages = (ROOT / "web" / "docs").glob("*.md") if folder == HELP else PAGES
    return any(f"images/{name})" in page.read_text(encoding="utf-8") for page in pages)


def test_no_picture_is_listed_twice():
    files = [picture.file for _, picture in PICTURES]
    assert len(set(files)) == len(files)


@each_picture
def test_a_picture_is_shown_somewhere_and_is_of_its_size(scene, picture):
    assert is_shown(picture.file)
    with Image.open(ROOT / picture.file) as file:
        assert file.width == picture.width
    if picture.file.startswith(THUMBNAILS):
        assert picture.file == f"{THUMBNAILS}/{scene.template}.jpg"


@each_picture
def test_a_picture_shows_nodes_of_its_template(scene, picture):
    there = {node["id"] for node in scene.graph()["nodes"]}
    added = {one.id for one in scene.added}
    assert not there & added
    assert set(picture.nodes) <= there | added
    if isinstance(picture, Sheet):
        assert {tile.run for tile in picture.tiles} <= set(range(len(scene.runs)))
        assert not set(picture.nodes) & set(scene.off)


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.pictures[0].file)
def test_a_scene_sets_and_links_nodes_of_its_template(scene: Scene):
    graph = scene.graph()
    there = {node["id"]: node for node in graph["nodes"]}
    assert set(scene.off) <= set(there)
    added = {one.id for one in scene.added}
    assert {node for widgets in scene.runs for node, _ in widgets} <= set(there) | added
    for one in scene.added:
        assert {node for _, node, _ in one.inputs} <= set(there) | added
        assert all(slot < len(there[node]["outputs"]) for _, node, slot in one.inputs if node in there)
        assert all(name in [slot["name"] for slot in there[node]["inputs"]] for _, node, name in one.outputs)
    # what runs does not wait for what is off
    sources = {link[3]: [] for link in graph["links"]}
    for link in graph["links"]:
        sources[link[3]].append(link[1])
    for node, needed in sources.items():
        assert node in scene.off or not set(needed) & set(scene.off)


def test_pictures_are_chosen_by_a_part_of_their_path():
    assert [scene for scene, _ in chosen([])] == list(SCENES)
    ((scene, pictures),) = chosen(["djepa_loader"])
    assert scene.template == "20 A JEPA that draws"
    assert [picture.file for picture in pictures] == [f"{HELP}/djepa_loader.png"]
    assert chosen(["no such picture"]) == []


def test_a_sheet_has_its_width_and_a_line_for_captions(tmp_path):
    made = [{1: [Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 80), "blue")]}]
    tiles = (Tile(1, 0, caption="one"), Tile(1, 1, box=(0, 0, 64, 64)))
    drawn = put_together(Sheet("a.png", tiles, width=108, columns=2), made)
    assert drawn.size == (108, 80)
    assert [drawn.getpixel(place) for place in ((10, 10), (90, 10), (53, 10))] == [
        (255, 0, 0),
        (0, 0, 255),
        (255, 255, 255),
    ]
    for name in ("a.png", "a.jpg"):
        save(drawn, tmp_path / name)
        with Image.open(tmp_path / name) as file:
            assert file.size == (108, 80)
