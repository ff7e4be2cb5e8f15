"""The templates in workflows/ are as the web page would save them, and the server accepts them."""

from __future__ import annotations

import copy
import io
import json
import math
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomllib
from PIL import Image

from tools.environment.pinned import HOST
from tools.server import ExecutionFailed, PromptRefused, Server

FOLDER = Path(__file__).absolute().parents[2] / "workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
# Nodes that exist only on the web page and are never queued.
PAGE_ONLY = ("MarkdownNote", "Note")
# Inputs that name a file that users have and the test host does not.
MODEL_FILES = ("ckpt_name", "unet_name", "clip_name", "vae_name")
WITHOUT_CHECKPOINT = (
    "12 Search then guide",
    "10 Rare search",
    "19 Beside other methods",
    "01 First try without a checkpoint",
    "07 Unlike my last pictures",
    "20 A JEPA that draws",
    "08 Four that differ",
    "13 Keep the rarest",
    "06 Unlike what the prompt usually gives",
    "16 The rarest of my folder",
    "14 Pick by eye",
    "17 Which parts are rare",
    "18 Redraw the usual part",
    "15 How rare is an image",
    "05 How strong is right",
    "09 Two guides from one seed",
)
DIRECTORIES = {
    "CheckpointLoaderSimple": "checkpoints",
    "UNETLoader": "diffusion_models",
    "CLIPLoader": "text_encoders",
    "VAELoader": "vae",
}
PROJECT = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONTROLS = ("fixed", "increment", "decrement", "randomize")
TITLE_HEIGHT = 30
GUIDED_AND_STOCK = (
    "04 One seed with and without guidance",
    "01 First try without a checkpoint",
    "07 Unlike my last pictures",
    "08 Four that differ",
    "06 Unlike what the prompt usually gives",
)

FIRST = "01 First try without a checkpoint"

Workflow = dict[str, Any]
Node = dict[str, Any]


def workflow(name: str) -> Workflow:
    content: Workflow = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return content


def real_nodes(graph: Workflow) -> list[Node]:
    return [node for node in graph["nodes"] if node["type"] not in PAGE_ONLY]


def declared(info: Workflow) -> Iterator[tuple[str, str | list, dict]]:
    """Name, type (a list for an old-style menu) and options of every input, in the page's order."""
    for section in ("required", "optional"):
        for name in info["input_order"].get(section, []):
            kind, *rest = info["input"][section][name]
            yield name, kind, rest[0] if rest else {}


def is_widget(kind: str | list, options: dict) -> bool:
    typed = isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
    return typed and not options.get("forceInput")


def companion(name: str, kind: str | list, options: dict) -> tuple[str, ...]:
    """The values of the extra widget that the page adds after this input; () if there is none."""
    if options.get("image_upload"):
        return ("image",)
    seed = kind == "INT" and name in ("seed", "noise_seed")
    return CONTROLS if options.get("control_after_generate", seed) else ()


def widgets(node: Node, info: Workflow) -> dict[str, Any]:
    """The node's widget values by input name; fails if there are too few, too many, or any is misplaced."""
    values = list(node.get("widgets_values", []))
    named: dict[str, Any] = {}
    for name, kind, options in declared(info):
        if not is_widget(kind, options):
            continue
        assert values, f"{node['type']} has no value for {name}"
        named[name] = values.pop(0)
        if allowed := companion(name, kind, options):
            assert values, f"{node['type']} has no value for the widget after {name}"
            assert values.pop(0) in allowed, f"{node['type']}, after {name}"
    assert not values, f"{node['type']} has values to spare: {values}"
    return named


def check_value(name: str, value: Any, kind: str | list, options: dict) -> None:
    """Fail unless the value is valid for the widget."""
    if isinstance(kind, list) or kind == "COMBO":
        menu = kind if isinstance(kind, list) else options["options"]
        assert value in menu or name in MODEL_FILES, f"{name}: {value} is not in {menu}"
        return
    expected = {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool}[kind]
    assert isinstance(value, expected), name
    if kind in ("INT", "FLOAT"):
        assert not isinstance(value, bool), name
        assert options.get("min", value) <= value <= options.get("max", value), name


def api_prompt(graph: Workflow, infos: Workflow) -> dict[str, Node]:
    """The graph as the page would queue it."""
    source = {link[0]: [str(link[1]), link[2]] for link in graph["links"]}
    prompt = {}
    for node in real_nodes(graph):
        linked = {slot["name"]: source[slot["link"]] for slot in node["inputs"] if slot["link"] is not None}
        inputs = widgets(node, infos[node["type"]]) | linked
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def of_type(prompt: dict[str, Node], kind: str) -> dict[str, Node]:
    found = {key: node for key, node in prompt.items() if node["class_type"] == kind}
    assert found, kind
    return found


@pytest.fixture(scope="module")
def infos(server: Server) -> Workflow:
    return server.object_info()


@pytest.fixture(scope="module")
def local(infos: Workflow) -> str:
    """The encoder that the test server has."""
    menu = infos["JEPAEncoderLoader"]["input"]["required"]["encoder"][1]["options"]
    (name,) = [name for name in menu if name.endswith(".safetensors")]
    return name


def small(prompt: dict[str, Node], encoder: str) -> dict[str, Node]:
    """The prompt with the local encoder, small enough to keep the test short."""
    for node in of_type(prompt, "JEPAEncoderLoader").values():
        node["inputs"] |= {"encoder": encoder, "image_size": 56}
    return prompt


def test_there_are_templates_and_they_lie_where_the_host_looks():
    assert len(NAMES) >= 5
    assert all(path.suffix in (".json", ".jpg") for path in FOLDER.iterdir())
    assert {path.stem for path in FOLDER.glob("*.jpg")} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_template_is_plain_text_without_paths_or_addresses_except_those_of_its_models(name):
    text = (FOLDER / f"{name}.json").read_text(encoding="utf-8")
    assert text.isascii()
    for node in workflow(name)["nodes"]:
        for model in node["properties"].get("models", ()):
            text = text.replace(f'"{model["url"]}"', "")
    assert not any(mark in text for mark in ("/root", "/home", "/Users", "C:\\", "://"))


@pytest.mark.parametrize("name", NAMES)
def test_a_template_says_where_its_models_and_its_nodes_come_from(name):
    for node in real_nodes(workflow(name)):
        properties = node["properties"]
        if node["type"].startswith(("JEPA", "DJEPA")):
            assert (properties["cnr_id"], properties["ver"]) == (PROJECT["name"], PROJECT["version"])
        else:
            assert (properties["cnr_id"], properties["ver"]) == ("comfy-core", HOST.version)
        # the host offers to download what a menu lacks; encoders are fetched by their loader
        models = properties.get("models", [])
        files = [value for value in node.get("widgets_values", []) if str(value).endswith(".safetensors")]
        assert [model["name"] for model in models] == files, node["type"]
        for model in models:
            address = r"https://huggingface\.co/[\w.-]+/[\w.-]+/resolve/main/([\w.-]+/)*" + re.escape(
                model["name"]
            )
            assert re.fullmatch(address, model["url"])
            assert model["directory"] == DIRECTORIES[node["type"]]


def test_a_picture_that_a_template_loads_comes_along(server, infos):
    graphs = [workflow(name) for name in NAMES]
    loaded = {
        node["widgets_values"][0]
        for graph in graphs
        for node in graph["nodes"]
        if node["type"] == "LoadImage"
    }
    assert loaded
    (menu, _) = infos["LoadImage"]["input"]["required"]["image"]
    for name in loaded:
        assert name in menu
        shipped = (FOLDER.parent / "assets" / name).read_bytes()
        assert server.image({"filename": name, "subfolder": "", "type": "input"}) == shipped


@pytest.mark.parametrize("name", NAMES)
def test_every_node_exists_with_these_inputs_and_outputs(infos, name):
    for node in real_nodes(workflow(name)):
        info = infos[node["type"]]
        kinds = {key: "COMBO" if isinstance(kind, list) else kind for key, kind, _ in declared(info)}
        slots = [key for key, kind, options in declared(info) if not is_widget(kind, options)]
        # sockets come first, in declared order, then the sockets of linked widgets
        shown = [slot["name"] for slot in node["inputs"]]
        assert shown[: len(slots)] == slots, node["type"]
        assert all(slot["widget"]["name"] == slot["name"] for slot in node["inputs"][len(slots) :])
        assert {slot["name"]: slot["type"] for slot in node["inputs"]}.items() <= kinds.items()
        assert [slot["name"] for slot in node["outputs"]] == info["output_name"], node["type"]
        assert [slot["type"] for slot in node["outputs"]] == info["output"], node["type"]


@pytest.mark.parametrize("name", NAMES)
def test_links_connect_the_sockets_that_they_name(name):
    graph = workflow(name)
    nodes = {node["id"]: node for node in graph["nodes"]}
    assert len(nodes) == len(graph["nodes"])
    assert max(nodes) <= graph["last_node_id"]
    assert max(link[0] for link in graph["links"]) <= graph["last_link_id"]
    for number, start, output, end, slot, kind in graph["links"]:
        sender, receiver = nodes[start]["outputs"][output], nodes[end]["inputs"][slot]
        assert number in sender["links"]
        assert receiver["link"] == number
        assert sender["type"] == kind
        assert receiver["type"] in (kind, "*")
    joined = {link[0] for link in graph["links"]}
    sockets = [slot for node in graph["nodes"] for slot in node["inputs"]]
    # the page marks optional inputs by this shape
    linked = {slot["link"] for slot in sockets if slot["link"] is not None or slot.get("shape") != 7}
    assert linked == joined, "a socket is open, or tells of a link that is not there"


@pytest.mark.parametrize("name", NAMES)
def test_every_widget_has_a_valid_value(infos, name):
    for node in real_nodes(workflow(name)):
        info = infos[node["type"]]
        named = widgets(node, info)
        for key, kind, options in declared(info):
            if key in named:
                check_value(key, named[key], kind, options)


@pytest.mark.parametrize("name", NAMES)
def test_no_nodes_overlap_and_a_note_explains_the_graph(name):
    graph = workflow(name)
    boxes = []
    for node in graph["nodes"]:
        (x, y), (width, height) = node["pos"], node["size"]
        boxes.append((x, y - TITLE_HEIGHT, x + width, y + height, node.get("title", node["type"])))
    for index, (left, top, right, bottom, title) in enumerate(boxes):
        for other in boxes[index + 1 :]:
            apart = other[0] >= right or other[2] <= left or other[1] >= bottom or other[3] <= top
            assert apart, f"{title} and {other[4]}"
    assert any(node["type"] in PAGE_ONLY for node in graph["nodes"])
    assert all(group["title"] for group in graph["groups"])
    for left, top, right, bottom, title in boxes:
        for group in graph["groups"]:
            x, y, width, height = group["bounding"]
            inside = x <= left and y + TITLE_HEIGHT <= top and right <= x + width and bottom <= y + height
            outside = left >= x + width or right <= x or top >= y + height or bottom <= y
            assert inside or outside, f"{title} and the border of {group['title']}"


@pytest.mark.parametrize("name", NAMES)
def test_it_opens_where_it_begins_at_a_zoom_where_text_shows(name):
    graph = workflow(name)
    view = graph["extra"]["ds"]
    assert view["scale"] > 8 / 14  # the page draws no letters of less than 8 pixels; those of nodes have 14
    boxes = [group["bounding"][:2] for group in graph["groups"]] + [node["pos"] for node in graph["nodes"]]
    corner = [min(box[axis] for box in boxes) for axis in (0, 1)]
    on_screen = [
        (place + offset) * view["scale"] for place, offset in zip(corner, view["offset"], strict=True)
    ]
    assert all(60 <= place <= 130 for place in on_screen)  # beside the bars of a page


@pytest.mark.parametrize("name", NAMES)
def test_a_note_says_in_four_languages_what_to_look_at(name):
    """The page does not translate notes: the English text ends with a paragraph in each of the other languages."""
    (note,) = (node for node in workflow(name)["nodes"] if node["type"] == "MarkdownNote")
    assert (note["title"], note["color"], note["bgcolor"]) == ("What to look at", "#222", "#000")
    *english, chinese, japanese, korean = note["widgets_values"][0].split("\n\n")
    assert "\n\n".join(english).isascii()
    for text, heading, charset in (
        (chinese, "\u4e2d\u6587\uff1a", "gb2312"),
        (japanese, "\u65e5\u672c\u8a9e\uff1a", "shift_jis"),
        (korean, "\ud55c\uad6d\uc5b4:", "euc_kr"),
    ):
        assert text.startswith(f"**{heading}** ")
        assert len(text) > 40
        text.encode(charset)
        # what is marked is a name on the page
        marked = re.findall(r"(?<!\*)(?:`|\*\*?)([^*`]+)(?:`|\*\*?)", text.partition("** ")[2])
        assert [one for one in marked if one not in "\n\n".join(english)] == []
    assert height_of(note["widgets_values"][0], note["size"][0]) <= note["size"][1]


def height_of(text: str, width: int) -> float:
    """About how high a note is on the canvas, in pixels: 10 pixels a letter of Chinese, Japanese or Korean."""
    height = 20.0
    for block in text.split("\n\n"):
        for line in block.split("\n"):
            letters = sum(10 if unicodedata.east_asian_width(one) in "WF" else 5.5 for one in line)
            height += 16 * math.ceil(letters * (1.4 if line.startswith("#") else 1) / (width - 40))
        height += 8
    return height


@pytest.mark.parametrize("name", [name for name in NAMES if name not in WITHOUT_CHECKPOINT])
def test_only_the_models_are_missing_on_the_server(server, infos, name):
    prompt = api_prompt(workflow(name), infos)
    loaders = {node["class_type"] for node in prompt.values()} & set(DIRECTORIES)

    def faults(candidate: dict[str, Node]) -> set[tuple[str, str]]:
        with pytest.raises(PromptRefused) as refused:
            server.queue(candidate)
        reported = refused.value.answer["node_errors"].values()
        return {(fault["class_type"], error["type"]) for fault in reported for error in fault["errors"]}

    missing = {(loader, "value_not_in_list") for loader in loaders}
    assert missing
    assert faults(prompt) == missing
    # with one more fault, to show that faults are found
    broken = copy.deepcopy(prompt)
    (latent,) = (node for node in broken.values() if node["class_type"].startswith("Empty"))
    latent["inputs"]["width"] = 1
    assert faults(broken) == missing | {(latent["class_type"], "value_smaller_than_min")}


@pytest.mark.parametrize("name", GUIDED_AND_STOCK)
def test_one_dial_sets_the_seed_of_both_samplers(infos, name):
    prompt = api_prompt(workflow(name), infos)
    (dial,) = of_type(prompt, "PrimitiveInt")
    (stock,) = of_type(prompt, "KSampler").values()
    (guided,) = of_type(prompt, "JEPAGuidedKSampler").values()
    assert stock["inputs"]["seed"] == guided["inputs"]["seed"] == [dial, 0]
    # all other settings are equal too, so guidance is the only difference; the first template's latents are of the same size
    same = set(stock["inputs"]) - ({"latent_image"} if name == FIRST else set())
    assert {key: guided["inputs"][key] for key in same} == {key: stock["inputs"][key] for key in same}


def test_the_first_template_guides_when_the_unguided_images_are_there(infos):
    """Of two samplers that are ready the host takes either one, and the guided one takes much longer."""
    prompt = api_prompt(workflow(FIRST), infos)
    (stock,) = of_type(prompt, "KSampler")
    (guided,) = of_type(prompt, "JEPAGuidedKSampler").values()
    (size,) = of_type(prompt, "GetImageSize")
    decoded = prompt[size]["inputs"]["image"][0]
    assert prompt[decoded]["inputs"]["samples"] == [stock, 0]
    latents = prompt[guided["inputs"]["latent_image"][0]]
    assert latents["class_type"] == "EmptyLatentImage"
    assert latents["inputs"] == {"width": [size, 0], "height": [size, 1], "batch_size": [size, 2]}


def test_the_demo_runs_and_gives_pictures_and_scores(server, infos, local):
    prompt = small(api_prompt(workflow(FIRST), infos), local)
    for kind in ("KSampler", "JEPAGuidedKSampler"):
        for node in of_type(prompt, kind).values():
            node["inputs"]["steps"] = 4
    (stock,) = of_type(prompt, "KSampler").values()
    prompt[stock["inputs"]["latent_image"][0]]["inputs"]["batch_size"] = 2
    for node in of_type(prompt, "JEPAScoreImage").values():
        node["inputs"]["top_k"] = 4
    entry = server.wait(server.queue(prompt), timeout=600)
    pictures = {}
    for key, node in of_type(prompt, "SaveImage").items():
        files = entry["outputs"][key]["images"]
        assert all(file["subfolder"] == "jepa" for file in files)
        pixels = [np.asarray(Image.open(io.BytesIO(server.image(file)))) for file in files]
        pictures[node["inputs"]["filename_prefix"]] = np.stack(pixels)
    unguided, guided = pictures["jepa/demo_unguided"], pictures["jepa/demo_guided"]
    assert unguided.shape == guided.shape == (2, 256, 256, 3)
    assert not np.array_equal(unguided, guided)
    for key in of_type(prompt, "PreviewAny"):
        (text,) = entry["outputs"][key]["text"]
        assert len(text.splitlines()) == 3  # two images below the headline


def test_scoring_runs_and_shows_the_score(server, infos, local):
    prompt = small(api_prompt(workflow("15 How rare is an image"), infos), local)
    entry = server.wait(server.queue(prompt), timeout=600)
    shown = sorted(entry["outputs"][key]["text"][0] for key in of_type(prompt, "PreviewAny"))
    number, text = float(shown[0]), shown[1]
    assert text.splitlines()[0].startswith("rarest first; projected")
    assert text.splitlines()[1].endswith(f"{number:.2f}")


def test_a_djepa_draws_and_redraws_half(server, infos):
    prompt = api_prompt(workflow("20 A JEPA that draws"), infos)
    for node in of_type(prompt, "DJEPASampler").values():
        node["inputs"] |= {"steps": 8, "denoising_steps": 8}
    entry = server.wait(server.queue(prompt), timeout=600)
    pictures = {}
    for key, node in of_type(prompt, "SaveImage").items():
        pixels = [
            np.asarray(Image.open(io.BytesIO(server.image(file)))) for file in entry["outputs"][key]["images"]
        ]
        pictures[node["inputs"]["filename_prefix"]] = np.stack(pixels).astype(int)
    drawn, redrawn = pictures["jepa/djepa"], pictures["jepa/djepa_redrawn"]
    assert drawn.shape == redrawn.shape == (4, 256, 256, 3)
    # the tokens above the border are the same; the decoder's normalisation sees all of them, so pixels change a little
    assert np.abs(redrawn[:, :48] - drawn[0, :48]).mean() <= 3
    assert all(np.abs(one[128:] - drawn[0, 128:]).max() > 20 for one in redrawn)


@pytest.mark.long
def test_two_guides_run_from_one_seed_and_are_scored_under_each(server, infos, local):
    prompt = small(api_prompt(workflow("09 Two guides from one seed"), infos), local)
    # the test host has one encoder; the second guide is the same one at another size
    loaders = of_type(prompt, "JEPAEncoderLoader")
    next(iter(loaders.values()))["inputs"]["image_size"] = 42
    samplers = of_type(prompt, "JEPAGuidedKSampler")
    (dial,) = of_type(prompt, "PrimitiveInt")
    assert [node["inputs"]["seed"] for node in samplers.values()] == 3 * [[dial, 0]]
    # the rows are equal except for guides, seed and judges
    own = ("encoder", "judge")
    settings = [
        {key: value for key, value in node["inputs"].items() if key not in own} for node in samplers.values()
    ]
    assert settings[0] == settings[1] == settings[2]
    guides = [node["inputs"]["encoder"][0] for node in samplers.values()]
    (both,) = of_type(prompt, "JEPACombineEncoders")
    assert guides == [*loaders, both]
    assert [node["inputs"].get("judge", [None])[0] for node in samplers.values()] == [
        guides[1],
        guides[0],
        None,
    ]
    for node in samplers.values():
        node["inputs"] |= {"steps": 4, "power_iterations": 0}
    (latent,) = of_type(prompt, "EmptyLatentImage").values()
    latent["inputs"]["batch_size"] = 1
    entry = server.wait(server.queue(prompt), timeout=600)
    pictures = [
        np.asarray(Image.open(io.BytesIO(server.image(entry["outputs"][key]["images"][0]))))
        for key in of_type(prompt, "SaveImage")
    ]
    assert len(pictures) == 3
    assert not any(np.array_equal(pictures[a], pictures[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    for key in of_type(prompt, "PreviewAny"):
        (text,) = entry["outputs"][key]["text"]
        assert text.splitlines()[1].count(",") == 1  # under each of the two


def quick(name: str, infos: Workflow, encoder: str) -> dict[str, Node]:
    """A template of guidance by novelty as a prompt of two images in four steps."""
    prompt = small(api_prompt(workflow(name), infos), encoder)
    for kind in ("KSampler", "JEPAGuidedKSampler"):
        for node in of_type(prompt, kind).values():
            node["inputs"]["steps"] = 4
    (latent,) = of_type(prompt, "EmptyLatentImage").values()
    latent["inputs"]["batch_size"] = 2
    return prompt


def shown(server: Server, prompt: dict[str, Node], outputs: Workflow, kind: str) -> list[np.ndarray]:
    """The pictures that the node of a kind shows."""
    (key,) = of_type(prompt, kind)
    return [np.asarray(Image.open(io.BytesIO(server.image(file)))) for file in outputs[key]["images"]]


def test_novelty_beside_what_the_prompt_draws(server, infos, local):
    prompt = quick("06 Unlike what the prompt usually gives", infos, local)
    # the reference is drawn as A is
    (stock,) = of_type(prompt, "KSampler").values()
    (drawn,) = of_type(prompt, "JEPAPromptReference").values()
    shared = ("cfg", "sampler_name", "scheduler", "model", "positive", "negative", "latent_image")
    assert all(stock["inputs"][name] == drawn["inputs"][name] for name in shared)
    assert drawn["inputs"]["steps"] == 14
    drawn["inputs"] |= {"count": 6, "steps": 4}
    (guided,) = of_type(prompt, "JEPAGuidedKSampler").values()
    guided["inputs"]["target"] = "1 in 5"  # for 1 in 20 there are too few
    outputs = server.wait(server.queue(prompt), timeout=600)["outputs"]
    assert len(shown(server, prompt, outputs, "PreviewImage")) == 6
    texts = [outputs[key]["text"][0] for key in of_type(prompt, "PreviewAny")]
    assert all(text.count("of 6 reference images") == 2 for text in texts)
    before, after = ([float(part) for part in re.findall(r"novelty ([\d.]+)", text)] for text in texts)
    assert sum(after) > sum(before)


def test_a_folder_of_pictures_grows_with_each_run(server, infos, local):
    prompt = quick("07 Unlike my last pictures", infos, local)
    (folder,) = of_type(prompt, "JEPAReferenceFolder").values()
    (saved,) = of_type(prompt, "SaveImage").values()
    assert folder["inputs"]["folder"] == "output"
    folder["inputs"] |= {"subfolder": "mine", "count": 3}
    saved["inputs"]["filename_prefix"] = "mine/unlike"
    with pytest.raises(ExecutionFailed, match="There is no folder 'mine' in the output folder"):
        server.wait(server.queue(prompt), timeout=600)
    # as the note says
    first = copy.deepcopy(prompt)
    (folder,) = of_type(first, "JEPAReferenceFolder").values()
    folder["inputs"] |= {"folder": "input", "subfolder": ""}
    read = []
    for one in (first, prompt, prompt):
        outputs = server.wait(server.queue(one), timeout=600)["outputs"]
        assert len(shown(server, one, outputs, "SaveImage")) == 2
        text = next(outputs[key]["text"][0] for key in of_type(one, "PreviewAny"))
        read.append(text.splitlines()[0])
    assert read[1:] == ["2 reference images", "3 reference images"]


def test_the_rarest_of_a_folder_are_shown_with_all_scores(server, infos, local):
    prompt = small(api_prompt(workflow("16 The rarest of my folder"), infos), local)
    (folder,) = of_type(prompt, "JEPAScoreFolder").values()
    assert folder["inputs"]["folder"] == "input"  # which holds a picture that comes along
    outputs = server.wait(server.queue(prompt), timeout=600)["outputs"]
    texts = [outputs[key]["text"][0] for key in of_type(prompt, "PreviewAny")]
    assert re.match(r"\d+ pictures?, \d+ scored now\nscore -?[\d.]+ \(rarest\) to ", texts[0])
    assert "jepa_example.jpg," in texts[1]
    assert 1 <= len(shown(server, prompt, outputs, "PreviewImage")) <= 9


def test_images_of_a_batch_differ_more_when_they_move_apart(server, infos, local):
    prompt = quick("08 Four that differ", infos, local)
    (guided,) = of_type(prompt, "JEPAGuidedKSampler").values()
    assert guided["inputs"]["apart"] is True
    assert "reference" not in guided["inputs"]
    outputs = server.wait(server.queue(prompt), timeout=600)["outputs"]
    together, apart = (
        [float(text) for text in outputs[key]["text"]] for key in of_type(prompt, "PreviewAny")
    )
    # of two images, each is as far from the other
    assert together[0] == pytest.approx(together[1])
    assert min(apart) > max(together)


def test_the_usual_part_is_redrawn_and_the_rest_stays(server, infos, local):
    prompt = quick("18 Redraw the usual part", infos, local)
    (drawn,) = of_type(prompt, "JEPAPromptReference").values()
    drawn["inputs"] |= {"count": 4, "steps": 4}
    outputs = server.wait(server.queue(prompt), timeout=600)["outputs"]
    pictures = {
        node["inputs"]["filename_prefix"]: [
            np.asarray(Image.open(io.BytesIO(server.image(file)))).astype(int)
            for file in outputs[key]["images"]
        ]
        for key, node in of_type(prompt, "SaveImage").items()
    }
    masks = [mask[..., 0] for mask in shown(server, prompt, outputs, "MaskPreview")]
    pairs = zip(pictures["jepa/redraw_before"], pictures["jepa/redraw_after"], masks, strict=True)
    for before, after, mask in pairs:
        change = np.abs(after - before).mean(-1)
        # about a third is kept; the decoder mixes the two at the border
        assert 0.1 < (mask == 0).mean() < 0.5
        assert change[mask == 0].mean() < 0.3 * change[mask == 255].mean()


def test_a_strip_of_strengths_is_saved_with_its_labels(server, infos, local):
    prompt = small(api_prompt(workflow("05 How strong is right"), infos), local)
    (drawn,) = of_type(prompt, "JEPAPromptReference").values()
    drawn["inputs"] |= {"count": 4, "steps": 4}
    (strip,) = of_type(prompt, "JEPAStrengthStrip").values()
    strip["inputs"] |= {"steps": 4, "strengths": "0, 1"}
    outputs = server.wait(server.queue(prompt), timeout=600)["outputs"]
    (sheet,) = shown(server, prompt, outputs, "SaveImage")
    assert sheet.shape[1] == 2 * 256 + 3 * 16
    texts = [outputs[key]["text"] for key in of_type(prompt, "PreviewAny")]
    assert [len(text) for text in texts] == [4]
    assert all(0 <= float(number) <= 100 for number in texts[0])
