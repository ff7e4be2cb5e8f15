"""The stages of tools/gpu/run.py, in order of what they are worth."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools.gpu.bench import Bench, Size, seconds_until_idle
from tools.gpu.files import PARKED
from tools.gpu.graphs import SAMPLER, SETTINGS, STOCK, controlled, graph, node, own_model, report, watched
from tools.gpu.rows import NOT_ON_A_PROCESSOR, Prompt, Row, Stage, TimeUp, failure
from tools.server import ExecutionFailed, Server, ServerError

# Of the ways with a second denoiser call, which tells the shift; see gradients.
SETTINGS_COMPARED = ("defaults", "denoiser constant")
SAME_GRADIENT = 0.999
CANCELLED_STEPS = 30


def environment(bench: Bench) -> Iterator[Row]:
    """The files, the server at its defaults, and what the host makes of both: is dynamic VRAM on?"""
    process = bench.make_files()
    try:
        yield started(bench)
        yield from bench.file_rows(process)
    finally:
        if process.poll() is None:
            process.kill()
    for name, size in bench.plan.sizes.items():
        yield is_dynamic(bench, bench.run(f"{name}, loaded", report(size)), True)


def started(bench: Bench) -> Row:
    """A row about the default server's start."""
    begun = time.monotonic()
    row: Row = {"name": "server", "ok": True}
    try:
        bench.default()
    except ServerError as error:
        row |= failure(error, "")
    return row | {"seconds": round(time.monotonic() - begun, 1)}


def is_dynamic(bench: Bench, row: Row, wanted: bool) -> Row:
    """The row, failed unless dynamic VRAM is as it is wanted."""
    if bench.plan.cpu:
        return row | {NOT_ON_A_PROCESSOR: "dynamic VRAM"}
    patchers = [row.get(f"{what}_patcher") == "ModelPatcherDynamic" for what in ("model", "vae")]
    found = [row.get("aimdo_enabled"), row.get("core_patcher_is_dynamic"), *patchers]
    if row["ok"] and found != [wanted] * len(found):
        state = "off" if wanted else "on"
        row |= {"ok": False, "error": f"dynamic VRAM is {state}: {found}"}
    return row


def presets(bench: Bench) -> Iterator[Row]:
    """float16 checkpoints with every setting: at first, queued again, and once more after all was unloaded."""
    for model, size in bench.plan.sizes.items():
        for setting, changes in SETTINGS.items():
            for when, seed in (("first", 1), ("again", 2), ("after unloading", 1)):
                if when == "after unloading":
                    bench.free()
                yield bench.run(
                    f"{model}, {setting}, {when}", graph(bench, size, "preset", seed=seed, **changes)
                )


def precisions(bench: Bench) -> Iterator[Row]:
    """SD1.5 in other precisions, with the node's defaults twice."""
    size = bench.plan.sizes["SD1.5"]
    single = dataclasses.replace(size, file="sd15_float32.safetensors")
    cast = {"kind": "UNETLoader", "unet_name": "sd15.safetensors", "weight_dtype": "fp8_e4m3fn"}
    scaled = cast | {"unet_name": "sd15_scaled_float8.safetensors", "weight_dtype": "default"}
    runs = (("defaults", "first", 1), ("defaults", "again", 2), ("denoiser constant", "once", 1))
    for setting, when, seed in (*runs, ("balanced", "once", 1)):
        more = {"seed": seed, **SETTINGS[setting]}
        label = f"{setting}, {when}"
        yield bench.run(f"float32 checkpoint, {label}", graph(bench, single, "precision", **more))
        for kind, loader in (("cast to float8", cast), ("scaled float8", scaled)):
            prompt = own_model(graph(bench, size, "precision", **more), **loader)
            yield bench.run(f"{kind}, {label}", prompt)
        prompt = graph(bench, size, "precision", **more)
        prompt["vae"] = node("VAELoader", vae_name="vae_bfloat16.safetensors")
        prompt["sample"]["inputs"]["vae"] = ["vae", 0]
        yield bench.run(f"bfloat16 VAE, {label}", prompt)


def companions(bench: Bench) -> Iterator[Row]:
    """What stands beside a checkpoint in real graphs: ControlNet, LoRA, tiny decoder."""
    size = bench.plan.sizes["SD1.5"]
    for setting in ("defaults", "denoiser constant"):
        for when, seed in (("first", 1), ("again", 2)):
            prompt = controlled(bench, seed=seed, **SETTINGS[setting])
            yield bench.run(f"ControlNet, {setting}, {when}", prompt)
    for setting in ("defaults", "denoiser constant"):
        for strength in (0.5, 0.8):
            prompt = graph(bench, size, "lora", **SETTINGS[setting])
            loader = {"lora_name": "sd15_lora.safetensors", "strength_model": strength}
            prompt = own_model(prompt, kind="LoraLoaderModelOnly", model=["checkpoint", 0], **loader)
            yield bench.run(f"LoRA at {strength}, {setting}", prompt)
    approx = bench.models / "vae_approx"
    approx.mkdir(exist_ok=True)
    shutil.copy(bench.models / PARKED / "taesd_decoder.safetensors", approx)
    for setting, changes in (("fast", SETTINGS["fast"]), ("custom", {"decoder": "tiny autoencoder"})):
        for when, seed in (("first", 1), ("again", 2)):
            row = bench.run(
                f"tiny decoder, {setting}, {when}", graph(bench, size, "tiny", seed=seed, **changes)
            )
            if row["ok"] and "tiny autoencoder taesd" not in row["trace"]:
                row |= {"ok": False, "error": "the tiny decoder was not used"}
            yield row


def gradients(bench: Bench) -> Iterator[Row]:
    """The default server's gradients beside those of one with --disable-dynamic-vram.

    Compared is the shift of the latent, which is the normalised gradient times a number that both servers share: a
    guided step asks the denoiser at the latent and again at the shifted one, and GPUWatch keeps both.
    """
    cases = [
        (model, size, setting) for model, size in bench.plan.sizes.items() for setting in SETTINGS_COMPARED
    ]

    def run(server: Server | None, where: str, case: int) -> Row:
        model, size, setting = cases[case]
        prompt = watched(graph(bench, size, "", **SETTINGS[setting]), f"gradient{case}")
        return bench.run(f"{model}, {setting}, {where}", prompt, server=server)

    for case in range(len(cases)):
        yield run(None, "default server", case)
    bench.free()
    with bench.beside("--disable-dynamic-vram") as other:
        first = next(iter(bench.plan.sizes.values()))
        yield is_dynamic(bench, bench.run("--disable-dynamic-vram", report(first), server=other), False)
        for case, (model, _, setting) in enumerate(cases):
            yield run(other, "--disable-dynamic-vram", case)
            files = [folder / f"gradient{case}.npz" for folder in (bench.output, other.base / "output")]
            yield {"name": f"{model}, {setting}, gradients"} | compared(*files)


def compared(one: Path, other: Path) -> Row:
    """A row with the cosine of the shifts of each guided step in two files of GPUWatch."""
    try:
        pairs = list(zip(shifts(one), shifts(other), strict=True))
    except (OSError, ValueError) as error:
        return {"ok": False, "error": f"there is nothing to compare: {error}"}
    cosines = [round(float((a * b).sum() / ((a * a).sum() * (b * b).sum()) ** 0.5), 6) for a, b in pairs]
    # later steps start from latents that differ already
    good = bool(cosines) and cosines[0] >= SAME_GRADIENT
    row: Row = {"ok": good, "cosines": cosines}
    return row if good else row | {"error": f"the cosines of the shifts are {cosines}"}


def shifts(file: Path) -> list[Any]:
    """The shift (C, h, w) of each guided step: the last latent asked about at a time less the first, where they differ."""
    import numpy

    with numpy.load(file) as content:
        times, latents = content["times"], content["latents"].astype("float64")
    starts = [0, *(i for i in range(1, len(times)) if times[i] != times[i - 1]), len(times)]
    spans = [latents[end - 1] - latents[begin] for begin, end in itertools.pairwise(starts)]
    return [span for span in spans if span.any()]


def memory(bench: Bench) -> Iterator[Row]:
    """SDXL at the node's defaults on a card that something else fills but for a rest."""
    size = bench.plan.sizes["SDXL"]

    def ballast(free: float) -> Row:
        bench.free()
        prompt = {"ballast": node("GPUBallast", free=float(free), salt=bench.salt())}
        row = bench.run(f"ballast, {free} GiB left" if free else "ballast gone", prompt)
        return row | ({NOT_ON_A_PROCESSOR: "ballast"} if bench.plan.cpu else {})

    try:
        for free in bench.plan.left_free:
            yield ballast(free)
            row = bench.run(f"SDXL, {free} GiB left", graph(bench, size, "memory"))
            yield row | {"notices": row.get("trace", "").count("out of memory")}
    finally:
        # what follows has the whole card, also where this stage failed
        with contextlib.suppress(TimeUp):
            if not ballast(0)["ok"]:
                bench.stop()


def bits(bench: Bench) -> Iterator[Row]:
    """What is promised bit for bit: the stock sampler beside guidance, strength 0, and one seed five times."""
    for model, size in reversed(list(bench.plan.sizes.items())):

        def run(name: str, sampler: str = SAMPLER, size: Size = size, **changes: Any) -> Row:
            return bench.run(name, graph(bench, size, file_name(name), sampler, **changes))

        before = run(f"{model}, stock", STOCK)
        yield before
        yield same_bits(before, run(f"{model}, stock again", STOCK))
        guided = [run(f"{model}, guided {i + 1}") for i in range(5)]
        yield from guided
        yield same_bits(before, run(f"{model}, stock after guided", STOCK))
        yield same_bits(before, run(f"{model}, strength 0", strength=0.0))
        yield repeated(bench, model, guided)


def file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def same_bits(one: Row, other: Row) -> Row:
    """The second row, failed unless its latent is the first one's."""
    other["same_bits"] = one.get("sha256") is not None and one.get("sha256") == other.get("sha256")
    if other["ok"] and not other["same_bits"]:
        other |= {"ok": False, "error": f"other bits than {one['name']}"}
    return other


def repeated(bench: Bench, model: str, rows: list[Row]) -> Row:
    """Whether runs of one seed are equal, and the largest difference beside how far guidance went."""
    row: Row = {"name": f"{model}, guided five times"}
    if not all(one["ok"] for one in rows):
        return row | {"ok": False, "error": "not all of the runs succeeded"}
    import numpy

    stock, *guided = (
        numpy.load(bench.output / f"{file_name(name)}.npy")
        for name in (f"{model}, stock", *(one["name"] for one in rows))
    )
    row["largest_difference"] = max(float(abs(one - guided[0]).max()) for one in guided)
    row["largest_change_by_guidance"] = float(abs(guided[0] - stock).max())
    row["ok"] = row["same_bits"] = len({one["sha256"] for one in rows}) == 1
    if not row["ok"]:
        row["error"] = f"five runs of one seed differ by up to {row['largest_difference']:.3g}"
    return row


def cancel(bench: Bench) -> Iterator[Row]:
    """The cancel button in the middle of guided steps: how long until the queue is idle, and the next prompt."""
    size = bench.plan.sizes["SDXL"]
    for setting in ("defaults", "denoiser constant"):
        name = f"cancel_{file_name(setting)}"
        long = {"steps": CANCELLED_STEPS, "start_percent": 0.0, "end_percent": 1.0}
        prompt = watched(graph(bench, size, name, **SETTINGS[setting] | long), name)
        yield {"name": f"SDXL, {setting}, cancelled"} | cancelled(
            bench, prompt, bench.output / f"{name}.calls"
        )
        yield bench.run(f"SDXL, {setting}, the next prompt", graph(bench, size, name, **SETTINGS[setting]))


def cancelled(bench: Bench, prompt: Prompt, calls: Path) -> Row:
    """Cancel a prompt after its denoiser's fifth call."""
    server = bench.default()
    limit = min(bench.plan.prompt_seconds, bench.remaining())
    queued, begun = server.queue(prompt), time.monotonic()
    while not (calls.exists() and int(calls.read_text() or 0) >= 5):
        if time.monotonic() - begun > limit or seconds_until_idle(server, 0.01) is not None:
            server.interrupt()
            return {"ok": False, "error": "it never came to the fifth call", "log": bench.log_tail()}
        time.sleep(0.02)
    pressed = time.monotonic()
    server.interrupt()
    seconds = seconds_until_idle(server, limit)
    if seconds is None:
        bench.stop()
        return {"ok": False, "error": f"still running {limit:.0f} s after it was cancelled"}
    row: Row = {"seconds_until_idle": seconds, "seconds": round(pressed - begun, 3)}
    try:
        server.wait(queued, limit)
    except ExecutionFailed as error:
        if error.event == "execution_interrupted":
            return row | {"ok": True}
        return row | {"ok": False, "error": str(error)[:500]}
    return row | {"ok": False, "error": "it ended before it was cancelled"}


def compiled(bench: Bench) -> Iterator[Row]:
    """The host's torch.compile node in front of guidance; last, since it may take all the time that it is given."""
    size = bench.plan.sizes["SD1.5"]
    if "TorchCompileModel" not in bench.default().object_info():
        yield {"name": "TorchCompileModel", "ok": True, "absent": True}
        return
    for setting in ("denoiser constant", "defaults"):
        prompt = graph(bench, size, "compiled", **SETTINGS[setting])
        compiler = {"kind": "TorchCompileModel", "model": ["checkpoint", 0], "backend": "inductor"}
        name = f"torch.compile, {setting}"
        row = bench.run(name, own_model(prompt, **compiler), bench.plan.compile_seconds)
        yield row | ({NOT_ON_A_PROCESSOR: "the compiler itself"} if bench.plan.cpu else {})


STAGES: dict[str, Stage] = {
    "environment": environment,
    "presets": presets,
    "precisions": precisions,
    "companions": companions,
    "gradients": gradients,
    "memory": memory,
    "bits": bits,
    "cancel": cancel,
    "torch.compile": compiled,
}


def driver() -> str:
    """The version of the card's driver, as nvidia-smi says it."""
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"not known: {error}"
