"""JEPA Pick Images on a real server: without a page, with pages that answer, with hostile ones, cancelled, and too late."""

from __future__ import annotations

import asyncio
import io
import json
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
import numpy as np
import pytest
from PIL import Image

from tests.server.test_graph import node
from tools.server import ExecutionFailed, Server

ROUTE = "/jepa_guidance/picks"
COUNT, TOTAL = 2, 5


def prompt(encoder: str, number: int, **changes: Any) -> dict[str, dict]:
    """Five images that no other run has, of one latent each, and a pick among them."""
    given = {"keep": "rarest", "count": COUNT, "timeout": 60, "on_timeout": "keep the first", "ask": "once"}
    return {
        "demo": node("JEPADemoLoader"),
        "noise": node("EmptyLatentImage", width=64, height=64, batch_size=TOTAL),
        "any": node("JEPADemoClass", class_name="any"),
        "sample": node(
            "KSampler",
            model=["demo", 0],
            positive=["any", 0],
            negative=["any", 0],
            latent_image=["noise", 0],
            seed=number,
            steps=1,
            cfg=1.0,
            sampler_name="euler",
            scheduler="simple",
            denoise=1.0,
        ),
        "decode": node("VAEDecode", samples=["sample", 0], vae=["demo", 1]),
        "encoder": node("JEPAEncoderLoader", encoder=encoder, image_size=28),
        "pick": node(
            "JEPAPickImages",
            images=["decode", 0],
            encoder=["encoder", 0],
            latents=["sample", 0],
            mode="projected",
            by="score",
            **given | changes,
        ),
        "all": node("PreviewImage", images=["decode", 0]),
        "kept": node("PreviewImage", images=["pick", 0]),
        "indices": node("PreviewAny", source=["pick", 2]),
        "decoded": node("VAEDecode", samples=["pick", 4], vae=["demo", 1]),
        "again": node("PreviewImage", images=["decoded", 0]),
    }


class Page:
    """A page of the server, as far as a pick sees it: a socket that says what it can do, and gets events.

    Args:
        flags: what the page says it can do; {} as a script, which says nothing.
    """

    def __init__(self, server: Server, flags: dict[str, Any]) -> None:
        self.server = server
        self.id = uuid.uuid4().hex
        self.events: list[dict] = []
        self._flags = flags
        self._over = False
        self._pool = ThreadPoolExecutor(1)
        self._done = self._pool.submit(asyncio.run, self._listen())
        wait_for(lambda: self.events or self._done.done())

    def close(self) -> None:
        self._over = True
        self._done.result(20)
        self._pool.shutdown()

    async def _listen(self) -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{self.server.url}/ws?clientId={self.id}") as socket,
        ):
            if self._flags:
                await socket.send_json({"type": "feature_flags", "data": self._flags})
            while not self._over:
                try:
                    message = await socket.receive(timeout=0.1)
                except TimeoutError:
                    continue
                if message.type == aiohttp.WSMsgType.TEXT:
                    self.events.append(message.json())

    def queue(self, prompt: dict) -> str:
        workflow = {"extra_pnginfo": {"workflow": {"id": "of-the-page"}}}
        return self.server.queue(prompt, {"client_id": self.id, **workflow})

    def picks(self, state: str) -> list[dict]:
        """The events about picks in this state."""
        return [
            one["data"]
            for one in self.events
            if one["type"] == "jepa_guidance.pick" and one["data"]["state"] == state
        ]

    def asked(self) -> dict:
        """The last question, once it is asked."""
        wait_for(lambda: self.picks("open"))
        return self.picks("open")[-1]


def wait_for(found: Callable[[], Any], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


def post(server: Server, content: Any, kind: str = "application/json", **headers: str) -> tuple[int, dict]:
    """The status and JSON of the server's answer to an answer."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    request = urllib.request.Request(server.url + ROUTE, data=data, headers={"Content-Type": kind, **headers})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        text = error.read()
        return error.code, json.loads(text) if text.startswith(b"{") else {}


def open_picks(server: Server) -> list[dict]:
    found: list[dict] = json.loads(server.get(ROUTE))
    return found


@pytest.fixture
def page(server: Server) -> Iterator[Callable[..., Page]]:
    pages = []

    def connect(flags: dict[str, Any] | None = None) -> Page:
        pages.append(Page(server, {"supports_preview_metadata": True} if flags is None else flags))
        return pages[-1]

    yield connect
    for one in pages:
        one.close()


@pytest.fixture(scope="module")
def encoder(server: Server) -> str:
    menu = server.object_info()["JEPAEncoderLoader"]["input"]["required"]["encoder"][1]["options"]
    (local,) = [name for name in menu if name.endswith(".safetensors")]
    return str(local)


def pixels(server: Server, outputs: dict, name: str) -> np.ndarray:
    files = outputs[name]["images"]
    return np.stack([np.asarray(Image.open(io.BytesIO(server.image(file)))) for file in files])


def check_kept(server: Server, outputs: dict, kept: list[int]) -> None:
    """Fail unless images, indices and latents are those of these places."""
    every = pixels(server, outputs, "all")
    assert len(np.unique(every.reshape(TOTAL, -1), axis=0)) == TOTAL
    assert np.array_equal(pixels(server, outputs, "kept"), every[kept])
    assert np.abs(pixels(server, outputs, "again").astype(int) - every[kept]).max() <= 1
    assert [int(text) for text in outputs["indices"]["text"]] == kept
    assert outputs["pick"]["jepa_pick"][0]["kept"] == kept


def test_a_prompt_without_a_page_keeps_the_first_at_once(server, encoder, page):
    own = prompt(encoder, 1, timeout=86400)
    outputs = server.wait(server.queue(own), timeout=120)["outputs"]
    (record,) = outputs["pick"]["jepa_pick"]
    order = [image["index"] for image in record["images"]]
    values = [image["value"] for image in record["images"]]
    assert values == sorted(values)
    assert sorted(order) == list(range(TOTAL))
    assert record["state"] == "unasked"
    check_kept(server, outputs, order[:COUNT])
    # a script that listens to a socket is no page, and nobody is asked by it
    script = page({})
    outputs = server.wait(script.queue(prompt(encoder, 2, timeout=86400)), timeout=120)["outputs"]
    assert outputs["pick"]["jepa_pick"][0]["state"] == "unasked"
    assert not script.picks("open")
    # nobody has chosen: a page is asked, though the same was run before
    human = page()
    running = human.queue(own)
    assert [image["index"] for image in human.asked()["images"]] == order
    assert post(server, {"id": human.asked()["id"], "kept": [order[3]]})[0] == 200
    check_kept(server, server.wait(running, timeout=120)["outputs"], [order[3]])


def test_two_pages_are_asked_the_first_answer_counts_and_the_other_is_told(server, encoder, page):
    one, other = page(), page()
    running = one.queue(prompt(encoder, 3, seeds=["seed", 0]) | {"seed": node("PrimitiveInt", value=2**53)})
    question = one.asked()
    assert question == other.asked()
    assert question["workflow"] == "of-the-page"
    assert question["node"] == "pick"
    assert {image["seed"] for image in question["images"]} == {str(2**53)}
    for image in question["images"]:
        shown = Image.open(io.BytesIO(server.image(image["picture"])))
        assert max(shown.size) == 256
        assert not shown.info  # no workflow in it
    # a page that is opened now learns of it
    (waiting,) = open_picks(server)
    assert {**waiting, "left": 0} == {**question, "left": 0}
    assert 0 < waiting["left"] < question["left"] <= 60
    assert post(server, {"id": question["id"], "kept": [4, 0]}) == (200, {"message": "The run goes on."})
    outputs = server.wait(running, timeout=120)["outputs"]
    check_kept(server, outputs, [4, 0])
    for asked in (one, other):
        wait_for(lambda asked=asked: asked.picks("picked"))
        assert asked.picks("picked") == [{"id": question["id"], "state": "picked", "kept": [4, 0]}]
    status, said = post(server, {"id": question["id"], "kept": [1]})
    assert (status, said["error"]) == (404, "This pick is over, or never was.")
    assert open_picks(server) == []


def test_what_was_picked_is_kept_for_the_same_images_unless_asked_for(server, encoder, page):
    human = page()
    once = prompt(encoder, 4)
    running = human.queue(once)
    assert post(server, {"id": human.asked()["id"], "kept": [2]})[0] == 200
    server.wait(running, timeout=120)
    # nothing has changed, so nobody is asked; what was kept is sent again
    outputs = server.wait(human.queue(once), timeout=60)["outputs"]
    assert outputs["pick"]["jepa_pick"][0]["kept"] == [2]
    assert len(human.picks("open")) == 1
    always = prompt(encoder, 4, ask="at every run")
    for number in (2, 3):
        running = human.queue(always)
        wait_for(lambda number=number: len(human.picks("open")) == number)
        assert post(server, {"id": human.asked()["id"], "kept": [number]})[0] == 200
        outputs = server.wait(running, timeout=60)["outputs"]
        assert outputs["pick"]["jepa_pick"][0]["kept"] == [number]
    # the host has written into the image what told it to ask again; programs read that as JSON
    (kept,) = outputs["kept"]["images"]
    written = json.loads(
        Image.open(io.BytesIO(server.image(kept))).info["prompt"], parse_constant=pytest.fail
    )
    assert "is_changed" in written["pick"]


def test_a_copy_that_a_loop_runs_is_asked_for_on_its_node(fresh_server, encoder_name):
    human = Page(fresh_server, {"supports_preview_metadata": True})
    try:
        looped = prompt(encoder_name, 9, ask="at every run") | {"again": node("Again", first=["pick", 0])}
        looped["twice"] = node("PreviewImage", images=["again", 0])
        running = human.queue(looped)
        for number in (1, 2):
            wait_for(lambda number=number: len(human.picks("open")) == number)
            assert human.asked()["node"] == "pick"
            assert post(fresh_server, {"id": human.asked()["id"], "kept": [number]})[0] == 200
        outputs = fresh_server.wait(running, timeout=120)["outputs"]
    finally:
        human.close()
    every = pixels(fresh_server, outputs, "all")
    kept = [pixels(fresh_server, outputs, name)[0] for name in ("kept", "twice")]
    found = {int(np.flatnonzero((every == one).reshape(TOTAL, -1).all(axis=1))[0]) for one in kept}
    assert found == {1, 2}


HOSTILE = {
    "no JSON": b"{",
    "no text": b"\xff\xfe\xfa",
    "too deep": b"[" * 8000,
    "too long a number": b'{"id": ' + b"1" * 9000 + b"}",
    "a list": [1],
    "a text": "id",
    "nothing": {},
    "no id": {"kept": [0]},
    "no places": {"id": "{id}"},
    "an id that is a list": {"id": ["{id}"], "kept": [0]},
    "no list": {"id": "{id}", "kept": "0"},
    "none kept": {"id": "{id}", "kept": []},
    "a text in the list": {"id": "{id}", "kept": ["0"]},
    "a fraction": {"id": "{id}", "kept": [0.0]},
    "true": {"id": "{id}", "kept": [True]},
    "nested": {"id": "{id}", "kept": [[0]]},
    "twice": {"id": "{id}", "kept": [1, 1]},
    "negative": {"id": "{id}", "kept": [-1]},
    "too large": {"id": "{id}", "kept": [TOTAL]},
    "one of two too large": {"id": "{id}", "kept": [0, 10**30]},
    "too long": {"id": "{id}", "kept": [0], "more": "x" * 20_000},
}


def test_hostile_answers_are_refused_and_the_run_waits_on(server, encoder, page):
    human = page()
    running = human.queue(prompt(encoder, 5))
    name = human.asked()["id"]
    for what, content in HOSTILE.items():
        data = content if isinstance(content, bytes) else json.dumps(content).replace("{id}", name).encode()
        status, said = post(server, data)
        assert status == 400, what
        assert said["error"], what
    good = {"id": name, "kept": [0]}
    for wrong in ("", "0", name[:-1], name + "A", "../" + name, "x" * 5000):
        assert post(server, {"id": wrong, "kept": [0]})[0] == 404
    # browsers send these kinds to other sites without asking
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        assert post(server, good, kind)[0] == 400
    # as the host's own routes, none for another site
    assert post(server, good, Origin="http://elsewhere.example")[0] == 403
    assert post(server, good, **{"Sec-Fetch-Site": "cross-site"})[0] == 403
    assert [one["id"] for one in open_picks(server)] == [name]
    assert post(server, good)[0] == 200
    check_kept(server, server.wait(running, timeout=120)["outputs"], [0])


def test_an_interrupt_ends_the_wait_at_once_and_the_next_run_asks_again(server, encoder, page):
    human = page()
    own = prompt(encoder, 6, timeout=86400)
    running = human.queue(own)
    first = human.asked()
    server.interrupt()
    with pytest.raises(ExecutionFailed) as stopped:
        server.wait(running, timeout=15)  # on a busy machine
    assert stopped.value.event == "execution_interrupted"
    wait_for(lambda: human.picks("cancelled"))
    assert human.picks("cancelled") == [{"id": first["id"], "state": "cancelled", "kept": []}]
    assert open_picks(server) == []
    assert post(server, {"id": first["id"], "kept": [0]})[0] == 404
    running = human.queue(own)
    wait_for(lambda: len(human.picks("open")) == 2)
    assert post(server, {"id": human.asked()["id"], "kept": [1]})[0] == 200
    check_kept(server, server.wait(running, timeout=60)["outputs"], [1])


def test_when_the_time_is_over_the_first_are_kept_or_the_run_stops(server, encoder, page):
    human = page()
    keeps = prompt(encoder, 7, timeout=5)
    running = human.queue(keeps)
    order = [image["index"] for image in human.asked()["images"]]
    before = time.monotonic()
    outputs = server.wait(running, timeout=30)["outputs"]
    assert time.monotonic() - before > 3
    (record,) = outputs["pick"]["jepa_pick"]
    assert record["state"] == "late"
    check_kept(server, outputs, order[:COUNT])
    wait_for(lambda: human.picks("late"))
    assert human.picks("late")[0]["kept"] == order[:COUNT]
    # nobody has chosen, so the same run asks again
    running = human.queue(keeps)
    wait_for(lambda: len(human.picks("open")) == 2)
    assert post(server, {"id": human.asked()["id"], "kept": [order[-1]]})[0] == 200
    check_kept(server, server.wait(running, timeout=60)["outputs"], [order[-1]])
    with pytest.raises(ExecutionFailed, match="Nobody picked an image within 5 s, so the run stopped") as end:
        server.wait(human.queue(prompt(encoder, 7, timeout=5, on_timeout="stop")), timeout=60)
    assert end.value.node_type == "JEPAPickImages"
    wait_for(lambda: human.picks("stopped"))
    assert human.picks("stopped")[0]["kept"] == []


def test_a_page_that_is_closed_and_opened_again_may_still_answer(server, encoder, page):
    human = page()
    running = human.queue(prompt(encoder, 8))
    human.asked()
    human.close()
    time.sleep(1)
    (waiting,) = open_picks(server)
    assert post(server, {"id": waiting["id"], "kept": [3, 1]})[0] == 200
    check_kept(server, server.wait(running, timeout=60)["outputs"], [3, 1])
