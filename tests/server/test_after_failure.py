"""After a run that fails halfway, the next one gives the same image as a new server."""

from __future__ import annotations

import io
import itertools
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from jepa_core import JacobianOperator, load_encoder
from tests.server.test_graph import graph, guided, node, patch, stock
from tools.server import ExecutionFailed, Server

# Values of end_percent that guide the same steps of four; a new value defeats the server's cache.
ENDS: Iterator[float] = (1 - number / 1000 for number in itertools.count())
INTERRUPTED_STEPS = 37
RANK, OVERSAMPLING = 9, 2


def small(prompt: dict) -> dict:
    """The prompt with an encoder of four patches, to keep the tests short."""
    prompt["encoder"]["inputs"]["image_size"] = 28
    return prompt


def pixels(server: Server, outputs: dict) -> np.ndarray:
    (ref,) = outputs["save"]["images"]
    return np.asarray(Image.open(io.BytesIO(server.image(ref))))


def guided_image(server: Server, prompt: dict) -> tuple[np.ndarray, list[int]]:
    """Run the prompt with the counting node; returns the image, and the number of tensors alive after it."""
    prompt["count"] = node("LiveTensors", after=["decode", 0])
    outputs = server.wait(server.queue(prompt), timeout=300)["outputs"]
    return pixels(server, outputs), outputs["count"]["tensors"]


def simple(encoder: str) -> dict:
    return small(graph(encoder, guided(end_percent=next(ENDS))))


@pytest.fixture(scope="module")
def first(fresh_server: Server, encoder_name: str) -> tuple[np.ndarray, list[int]]:
    """The guided image before any failure, and the number of tensors alive after it."""
    return guided_image(fresh_server, simple(encoder_name))


@pytest.fixture(scope="module")
def elsewhere(server: Server, encoder_name: str) -> np.ndarray:
    """The guided image of another server."""
    return pixels(server, server.wait(server.queue(simple(encoder_name)), timeout=300)["outputs"])


def a_sampler_that_cannot_be_guided(encoder: str) -> tuple[dict, str]:
    return graph(encoder, {**patch(), **stock(["patch", 0], sampler_name="dpm_adaptive")}), "dpm_adaptive"


def a_latent_that_is_no_number(encoder: str) -> tuple[dict, str]:
    prompt = graph(encoder, {**patch(), **stock(["patch", 0])})
    prompt["spoilt"] = node("NotANumber", samples=["empty", 0])
    prompt["sample"]["inputs"]["latent_image"] = ["spoilt", 0]
    return prompt, "NaN"


def a_denoiser_that_fails_in_a_guided_step(encoder: str) -> tuple[dict, str]:
    prompt = graph(encoder, guided(gradient_path="through denoiser"))
    # one call in the first step, which is unguided, and two in a guided one: this is the second of those
    prompt["failing"] = node("FailingModel", model=["demo", 0], call=4)
    prompt["sample"]["inputs"]["model"] = ["failing", 0]
    return prompt, "failed on purpose"


FAILURES = (
    a_sampler_that_cannot_be_guided,
    a_latent_that_is_no_number,
    a_denoiser_that_fails_in_a_guided_step,
)


@pytest.mark.parametrize("failure", FAILURES)
def test_the_next_run_gives_the_image_of_another_server(
    fresh_server: Server,
    encoder_name: str,
    first: tuple[np.ndarray, list[int]],
    elsewhere: np.ndarray,
    failure: Callable[[str], tuple[dict, str]],
) -> None:
    prompt, message = failure(encoder_name)
    with pytest.raises(ExecutionFailed, match=message):
        fresh_server.wait(fresh_server.queue(small(prompt)), timeout=300)
    image, tensors = guided_image(fresh_server, simple(encoder_name))
    assert np.array_equal(image, elsewhere)
    assert np.array_equal(image, first[0])
    assert tensors == first[1]


def seconds_of_a_pass(encoder_dir: Path) -> float:
    """The processor's time of one backward pass through the encoder, with as many directions as in the interrupted run."""
    encoder = load_encoder(encoder_dir, image_size=224)
    image = encoder.preprocess(torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(1)))
    jacobian = JacobianOperator(encoder, image[0])
    jacobian.vjp(torch.ones(1, encoder.embed_dim))  # the forward pass, shared by all backward passes
    start = time.process_time()
    jacobian.vjp(torch.eye(RANK + OVERSAMPLING, encoder.embed_dim))
    return time.process_time() - start


def processor_seconds(server: Server) -> float:
    """What a server has used so far; other programs do not count."""
    used = psutil.Process(server.process.pid).cpu_times()
    return float(used.user + used.system)


def wait_until_sampling(server: Server, steps: int) -> None:
    """Wait until the server reports progress of a run with `steps` steps; its models are loaded by then."""
    deadline = time.monotonic() + 120
    while not re.search(rf"\b0/{steps} \[", server.log()):
        assert time.monotonic() < deadline, server.log()[-2000:]
        time.sleep(0.05)


def test_an_interrupt_in_a_guided_step_ends_the_run_within_few_encoder_passes(
    fresh_server: Server,
    encoder_name: str,
    encoder_dir: Path,
    first: tuple[np.ndarray, list[int]],
    elsewhere: np.ndarray,
) -> None:
    settings = {"rank": RANK, "oversampling": OVERSAMPLING, "power_iterations": 2, "range_finder": "cold"}
    prompt = small(graph(encoder_name, guided(start_percent=0.0, **settings)))
    prompt["encoder"]["inputs"]["image_size"] = 224
    prompt["sample"]["inputs"]["steps"] = INTERRUPTED_STEPS
    running = fresh_server.queue(prompt)
    wait_until_sampling(fresh_server, INTERRUPTED_STEPS)
    time.sleep(0.5)  # a step takes seconds, so this is in the middle of the first
    before = processor_seconds(fresh_server)
    fresh_server.interrupt()
    with pytest.raises(ExecutionFailed) as failed:
        fresh_server.wait(running, timeout=300)
    seconds = processor_seconds(fresh_server) - before
    assert failed.value.event == "execution_interrupted"
    assert failed.value.node_type == "JEPAGuidedKSampler"
    # some passes take twice as many directions; one second is for the server itself
    assert seconds < 1 + 4 * seconds_of_a_pass(encoder_dir)

    image, tensors = guided_image(fresh_server, simple(encoder_name))
    assert np.array_equal(image, elsewhere)
    assert np.array_equal(image, first[0])
    assert tensors == first[1]
