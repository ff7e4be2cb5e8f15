"""The stages, the most valuable first."""

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

from tools.gpu.plan import Size
from tools.gpu.prompts import SAMPLER, SETTINGS, STOCK, controlled, graph, node, own_model, report, watched
from tools.gpu.random_models import PARKED
from tools.gpu.rows import NOT_ON_A_PROCESSOR, Prompt, Row, Stage, TimeUp, failure
from tools.gpu.session import Session, seconds_until_idle
from tools.server import ExecutionFailed, Server, ServerError

# Both ask the denoiser again at the shifted latent, which reveals the shift; see gradients.
TWO_CALLS = ("defaults", "denoiser constant")
SAME_GRADIENT = 0.999
CANCELLED_STEPS = 30


def environment(session: Session) -> Iterator[Row]:
    """The model files, the default server, and whether the host uses dynamic VRAM for both."""
    process = session.make_files()
    try:
        yield started(session)
        yield from session.file_rows(process)
    finally:
        if process.poll() is None:
            process.kill()
    for name, size in session.plan.sizes.items():
        yield is_dynamic(session, session.run(f"{name}, loaded", report(size)), True)


def started(session: Session) -> Row:
    """Start the default server; a row that says how it went."""
    begun = time.monotonic()
    row: Row = {"name": "server", "ok": True}
    try:
        session.default()
    except ServerError as error:
        row |= failure(error, "")
    return row | {"seconds": round(time.monotonic() - begun, 1)}


def is_dynamic(session: Session, row: Row, wanted: bool) -> Row:
    """The row, failed unless dynamic VRAM is on or off as wanted."""
    if session.plan.cpu:
        return row | {NOT_ON_A_PROCESSOR: "dynamic VRAM"}
    patchers = [row.get(f"{what}_patcher") == "ModelPatcherDynamic" for what in ("model", "vae")]
    found = [row.get("aimdo_enabled"), row.get("core_patcher_is_dynamic"), *patchers]
    if row["ok"] and found != [wanted] * len(found):
        state = "off" if wanted else "on"
        row |= {"ok": False, "error": f"dynamic VRAM is {state}: {found}"}
    return row


def presets(session: Session) -> Iterator[Row]:
    """float16 checkpoints with every setting: queued once, again, and after unloading everything."""
    for (model, size), setting in itertools.product(session.plan.sizes.items(), SETTINGS):
        for when, seed in (("first", 1), ("again", 2), ("after unloading", 1)):
            if when == "after unloading":
                session.free()
            prompt = graph(session, size, "preset", seed=seed, **SETTINGS[setting])
            yield session.run(f"{model}, {setting}, {when}", prompt)


def precisions(session: Session) -> Iterator[Row]:
    """SD1.5 in other precisions."""
    size = session.plan.sizes["SD1.5"]
    single = dataclasses.replace(size, file="sd15_float32.safetensors")
    cast = {"kind": "UNETLoader", "unet_name": "sd15.safetensors", "weight_dtype": "fp8_e4m3fn"}
    scaled = cast | {"unet_name": "sd15_scaled_float8.safetensors", "weight_dtype": "default"}
    runs = (("defaults", "first", 1), ("defaults", "again", 2), ("denoiser constant", "once", 1))
    for setting, when, seed in (*runs, ("subtle", "once", 1)):
        more = {"seed": seed, **SETTINGS[setting]}
        label = f"{setting}, {when}"
        yield session.run(f"float32 checkpoint, {label}", graph(session, single, "precision", **more))
        for kind, loader in (("cast to float8", cast), ("scaled float8", scaled)):
            prompt = own_model(graph(session, size, "precision", **more), **loader)
            yield session.run(f"{kind}, {label}", prompt)
        prompt = graph(session, size, "precision", **more)
        prompt["vae"] = node("VAELoader", vae_name="vae_bfloat16.safetensors")
        prompt["sample"]["inputs"]["vae"] = ["vae", 0]
        yield session.run(f"bfloat16 VAE, {label}", prompt)


def companions(session: Session) -> Iterator[Row]:
    """What real graphs add to a checkpoint: ControlNet, LoRA, tiny decoder."""
    size = session.plan.sizes["SD1.5"]
    twice = (("first", 1), ("again", 2))
    for setting, (when, seed) in itertools.product(TWO_CALLS, twice):
        prompt = controlled(session, seed=seed, **SETTINGS[setting])
        yield session.run(f"ControlNet, {setting}, {when}", prompt)
    for setting, strength in itertools.product(TWO_CALLS, (0.5, 0.8)):
        prompt = graph(session, size, "lora", **SETTINGS[setting])
        loader = {"lora_name": "sd15_lora.safetensors", "strength_model": strength}
        prompt = own_model(prompt, kind="LoraLoaderModelOnly", model=["checkpoint", 0], **loader)
        yield session.run(f"LoRA at {strength}, {setting}", prompt)
    approx = session.models / "vae_approx"
    approx.mkdir(exist_ok=True)
    shutil.copy(session.models / PARKED / "taesd_decoder.safetensors", approx)
    tiny = {"fast": SETTINGS["fast"], "custom": {**SETTINGS["custom"], "decoder": "tiny autoencoder"}}
    for setting, (when, seed) in itertools.product(tiny, twice):
        prompt = graph(session, size, "tiny", seed=seed, **tiny[setting])
        row = session.run(f"tiny decoder, {setting}, {when}", prompt)
        if row["ok"] and "tiny autoencoder taesd" not in row["trace"]:
            row |= {"ok": False, "error": "the tiny decoder was not used"}
        yield row


def gradients(session: Session) -> Iterator[Row]:
    """The default server's gradients beside those of one with --disable-dynamic-vram.

    A guided step calls the denoiser at the latent and again at the shifted one, and GPUWatch keeps both. Their
    difference, the shift, is the normalised gradient times a factor that both servers share.
    """
    sizes = session.plan.sizes
    cases = list(itertools.product(sizes, TWO_CALLS))

    def run(server: Server | None, where: str, case: int) -> Row:
        model, setting = cases[case]
        prompt = watched(graph(session, sizes[model], "", **SETTINGS[setting]), f"gradient{case}")
        return session.run(f"{model}, {setting}, {where}", prompt, server=server)

    for case in range(len(cases)):
        yield run(None, "default server", case)
    session.free()
    with session.beside("--disable-dynamic-vram") as other:
        first = next(iter(sizes.values()))
        yield is_dynamic(session, session.run("--disable-dynamic-vram", report(first), server=other), False)
        for case, (model, setting) in enumerate(cases):
            yield run(other, "--disable-dynamic-vram", case)
            files = [folder / f"gradient{case}.npz" for folder in (session.output, other.base / "output")]
            yield {"name": f"{model}, {setting}, gradients"} | compared(*files)


def compared(one: Path, other: Path) -> Row:
    """A row with the cosine between two runs' shifts at each guided step, from GPUWatch's files."""
    try:
        pairs = list(zip(shifts(one), shifts(other), strict=True))
    except (OSError, ValueError) as error:
        return {"ok": False, "error": f"nothing to compare: {error}"}
    cosines = [round(float((a * b).sum() / ((a * a).sum() * (b * b).sum()) ** 0.5), 6) for a, b in pairs]
    # later steps start from latents that already differ
    good = bool(cosines) and cosines[0] >= SAME_GRADIENT
    row: Row = {"ok": good, "cosines": cosines}
    return row if good else row | {"error": f"the cosines of the shifts are {cosines}"}


def shifts(file: Path) -> list[Any]:
    """The shift (C, h, w) of each guided step: last minus first latent of a time, where they differ."""
    import numpy

    with numpy.load(file) as content:
        times, latents = content["times"], content["latents"].astype("float64")
    starts = [0, *(i for i in range(1, len(times)) if times[i] != times[i - 1]), len(times)]
    spans = [latents[end - 1] - latents[begin] for begin, end in itertools.pairwise(starts)]
    return [span for span in spans if span.any()]


def memory(session: Session) -> Iterator[Row]:
    """SDXL at the node's defaults on a card that is almost full."""
    size = session.plan.sizes["SDXL"]

    def ballast(free: float) -> Row:
        session.free()
        prompt = {"ballast": node("GPUBallast", free=float(free), salt=session.salt())}
        row = session.run(f"ballast, {free} GiB left" if free else "ballast gone", prompt)
        return row | ({NOT_ON_A_PROCESSOR: "ballast"} if session.plan.cpu else {})

    try:
        for free in session.plan.left_free:
            yield ballast(free)
            row = session.run(f"SDXL, {free} GiB left", graph(session, size, "memory"))
            yield row | {"notices": row.get("trace", "").count("out of memory")}
    finally:
        # even if this stage fails, the next ones have the whole card
        with contextlib.suppress(TimeUp):
            if not ballast(0)["ok"]:
                session.stop()


def bits(session: Session) -> Iterator[Row]:
    """What is promised bit for bit: the stock sampler around guidance, strength 0, one seed five times with each setting."""
    for model, size in reversed(list(session.plan.sizes.items())):

        def run(name: str, sampler: str = SAMPLER, size: Size = size, **changes: Any) -> Row:
            return session.run(name, graph(session, size, file_name(name), sampler, **changes))

        before = run(f"{model}, stock", STOCK)
        yield before
        yield same_bits(before, run(f"{model}, stock again", STOCK))
        for setting, changes in SETTINGS.items():
            guided = [run(f"{model}, {setting} {i + 1}", **changes) for i in range(5)]
            yield from guided
            yield repeated(session, model, setting, guided)
        yield same_bits(before, run(f"{model}, stock after guided", STOCK))
        yield same_bits(before, run(f"{model}, strength 0", strength=0.0))


def file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def same_bits(one: Row, other: Row) -> Row:
    """The second row, failed unless its latent equals that of the first."""
    other["same_bits"] = one.get("sha256") is not None and one.get("sha256") == other.get("sha256")
    if other["ok"] and not other["same_bits"]:
        other |= {"ok": False, "error": f"other bits than {one['name']}"}
    return other


def repeated(session: Session, model: str, setting: str, rows: list[Row]) -> Row:
    """Whether runs with one seed are equal: unequal numbers, their largest difference, the largest change by guidance."""
    row: Row = {"name": f"{model}, {setting} five times"}
    if not all(one["ok"] for one in rows):
        return row | {"ok": False, "error": "not all of the runs succeeded"}
    import numpy

    stock, *guided = (
        numpy.load(session.output / f"{file_name(name)}.npy")
        for name in (f"{model}, stock", *(one["name"] for one in rows))
    )
    row["unequal_numbers"] = sum(int((one != guided[0]).sum()) for one in guided)
    row["largest_difference"] = max(float(abs(one - guided[0]).max()) for one in guided)
    row["largest_change_by_guidance"] = float(abs(guided[0] - stock).max())
    row["ok"] = row["same_bits"] = len({one["sha256"] for one in rows}) == 1
    if not row["ok"]:
        row["error"] = f"five runs of one seed differ by up to {row['largest_difference']:.3g}"
    return row


def cancel(session: Session) -> Iterator[Row]:
    """Cancelling in the middle of guided steps: how long until the queue is idle, and whether the next prompt runs."""
    size = session.plan.sizes["SDXL"]
    for setting in TWO_CALLS:
        name = f"cancel_{file_name(setting)}"
        long = {"steps": CANCELLED_STEPS, "start_percent": 0.0, "end_percent": 1.0}
        prompt = watched(graph(session, size, name, **SETTINGS[setting] | long), name)
        row = cancelled(session, prompt, session.output / f"{name}.calls")
        yield {"name": f"SDXL, {setting}, cancelled"} | row
        yield session.run(
            f"SDXL, {setting}, the next prompt", graph(session, size, name, **SETTINGS[setting])
        )


def cancelled(session: Session, prompt: Prompt, calls: Path) -> Row:
    """Cancel a prompt after five calls of its denoiser."""
    server = session.default()
    limit = min(session.plan.prompt_seconds, session.remaining())
    queued, begun = server.queue(prompt), time.monotonic()
    while not (calls.exists() and int(calls.read_text() or 0) >= 5):
        if time.monotonic() - begun > limit or seconds_until_idle(server, 0.01) is not None:
            server.interrupt()
            return {"ok": False, "error": "there was no fifth call", "log": session.log_tail()}
        time.sleep(0.02)
    pressed = time.monotonic()
    server.interrupt()
    seconds = seconds_until_idle(server, limit)
    if seconds is None:
        session.stop()
        return {"ok": False, "error": f"still running {limit:.0f} s after it was cancelled"}
    row: Row = {"seconds_until_idle": seconds, "seconds": round(pressed - begun, 3)}
    ended = "it ended before it was cancelled"
    try:
        server.wait(queued, limit)
    except ExecutionFailed as error:
        if error.event == "execution_interrupted":
            return row | {"ok": True}
        ended = str(error)[:500]
    return row | {"ok": False, "error": ended}


def compiled(session: Session) -> Iterator[Row]:
    """The host's torch.compile node before guidance; last, since it may use up all the time."""
    size = session.plan.sizes["SD1.5"]
    if "TorchCompileModel" not in session.default().object_info():
        yield {"name": "TorchCompileModel", "ok": True, "absent": True}
        return
    for setting in reversed(TWO_CALLS):
        prompt = graph(session, size, "compiled", **SETTINGS[setting])
        compiler = {"kind": "TorchCompileModel", "model": ["checkpoint", 0], "backend": "inductor"}
        name = f"torch.compile, {setting}"
        row = session.run(name, own_model(prompt, **compiler), session.plan.compile_seconds)
        yield row | ({NOT_ON_A_PROCESSOR: "the compiler itself"} if session.plan.cpu else {})


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
    """The card's driver version, from nvidia-smi."""
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"not known: {error}"
