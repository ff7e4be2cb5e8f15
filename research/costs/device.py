"""What does guidance cost on a CUDA device, what does it keep in memory, and do its promises hold there?

    python dev.py run research/costs/device.py --folder WORK          a machine with CUDA

The denoiser and the KL decoder are the host's own classes at the size of Stable Diffusion 1.5 (512 pixels) and SDXL
(1024 pixels), with random weights in the host's precision, resident; the encoder is the real trained one. Steps are timed
as research/costs/step.py times them; each arm runs once untimed, then several times; figures are medians. Peak memory is
torch's own count of tensors; "above weights" is what a run takes beside the resident networks. The gradient of a photo is
compared with the exact one in float64, made on the processor (some minutes; kept in WORK), and a cancel button is pressed
in the middle of guided steps.
"""

import gc
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import transformers
from skimage import data
from torch import Tensor

from jepa_core import Encoder, RarityGradient, jepa_score, load_encoder
from jepa_core.score import PROJECTION
from research.costs.gradient import ARMS as GRADIENTS
from research.costs.gradient import PAPER, focus
from research.costs.step import ARMS, NAIVE, UNGUIDED, measure, run_arm, with_ratios
from research.harness import program
from research.harness.naive import naive_gradient
from research.harness.networks import SD15, SDXL, Networks, random_networks, tiny_autoencoder
from research.harness.pack_api import load_host_encoder, preset_inputs, use_encoder
from research.harness.program import Row, markdown
from research.harness.reference import cosine, references
from research.harness.timing import Stages, clock, peak_memory, seconds_of, timed

NO_DEVICE = "this benchmark measures a CUDA device, and torch sees none on this machine"
PRESETS = ("faithful", "custom", "subtle", "fast")  # arms of research/costs/step.py
# the tracked ways again, their passes replayed as captured graphs
REPLAYED = {
    f"{arm}, replayed": settings | {"replay": True}
    for arm, settings in GRADIENTS.items()
    if settings.get("tracked", True)
}
TOP_K = 9
SIDE = 224
SIZES = {"SDXL, 1024 px": SDXL, "SD1.5, 512 px": SD15}


def arm_row(networks: Networks, arm: str, pixels: int, steps: int, repeats: int) -> Row:
    """Seconds of an arm's steps as research.costs.step.measure gives them, medians over repeats, and its peak memory."""
    run = partial(run_arm, networks, arm, 2, pixels)
    run(stages=Stages())  # loads, and lets the libraries choose their kernels
    memory = peak_memory(lambda: run(stages=Stages()))
    rows = [measure(networks, arm, steps, pixels, count=False) for _ in range(repeats)]
    found: Row = {name: median([row[name] for row in rows]) for name in ("seconds", "cold_seconds")}
    names = rows[0]["stages"]
    stages = {name: {"seconds": median([row["stages"][name]["seconds"] for row in rows])} for name in names}
    return found | {"encoder_calls": rows[-1]["encoder_calls"], "stages": stages} | memory


def median(values: Sequence[float]) -> float:
    return round(statistics.median(values), 4)


def step_figures(networks: Networks, pixels: int, arms: Sequence[str], steps: int, repeats: int) -> Row:
    """{arm: its row}, with ratios; an arm that fails has a row that says how."""
    found: dict[str, Row] = {}
    failed: dict[str, Row] = {}
    for arm in arms:
        try:
            found[arm] = arm_row(networks, arm, pixels, steps, repeats)
        except (RuntimeError, ValueError) as error:
            failed[arm] = {"failed": f"{type(error).__name__}: {error}"[:300]}
        print(f"    {arm}: {found.get(arm) or failed[arm]}", flush=True)
    return with_ratios(found) | failed


def score_figures(encoder: Encoder, x: Tensor, repeats: int) -> dict[str, float]:
    """Seconds an image of each mode of the score, x (1, 3, S, S) preprocessed and on the encoder's device."""
    return {
        "exact": seconds_of(partial(jepa_score, encoder, x), repeats),
        f"top {TOP_K}": seconds_of(partial(jepa_score, encoder, x, top_k=TOP_K), repeats),
        "projected": seconds_of(partial(jepa_score, encoder, x, projection=PROJECTION), repeats),
    }


def gradient_figures(folder: Path, work: Path, encoder: Encoder, repeats: int) -> Row:
    """Seconds and accuracy of each way to the encoder's gradient, for a photo that comes into focus.

    The last image is the sharp photo; its exact gradient is made in float64 on the processor, and kept in `work`. Every
    arm sees the last images in turn, as guidance shows them; the paper's algorithm is timed at the last one alone.
    """
    exact_encoder = load_encoder(folder, dtype=torch.float64, image_size=encoder.image_size)
    images = [image.double() for image in focus(exact_encoder)[-1 - repeats :]]
    truth = references(work / f"references-cuda-{folder.name}", exact_encoder, {"photo": images[-1]})["photo"]
    device = encoder.weight.device
    shown = [image.to(device, torch.float32) for image in images]
    arms: Row = {}
    for arm, settings in {**GRADIENTS, **REPLAYED}.items():
        rarity = RarityGradient(**settings)
        for _ in range(
            2
        ):  # what libraries set up at their first use, and the capture of passes, is not counted
            rarity.reset()
            results = [timed(partial(rarity, encoder, image[None])) for image in shown]
        found, times = results[-1][0], [seconds for _, seconds in results]
        arms[arm] = {
            "cold_seconds": round(times[0], 4),
            "seconds": median(times[1:]),
            "cosine": round(cosine(found.grad[0].cpu(), truth.grad), 5),
            "score_off": round(found.score.item() - truth.score.item(), 5),
            "encoder_calls": found.encoder_calls,
        }
    paper = naive_gradient(encoder, shown[-1])
    arms[PAPER] = {
        "seconds": seconds_of(partial(naive_gradient, encoder, shown[-1]), repeats),
        "cosine": round(cosine(paper.grad.cpu(), truth.grad), 5),
        "encoder_calls": paper.calls.sequential,
    }
    return {"arms": arms}


def promises(networks: Networks, pixels: int, arms: Sequence[str], presses: Sequence[float]) -> Row:
    """What holds on a processor, bit for bit, looked at here; and how long a cancelled run goes on.

    Args:
        presses: when the cancel button is pressed, in guided steps from the start of a run.
    """

    def run(arm: str, steps: int = 3, strength: float = 0.5) -> Tensor:
        return run_arm(networks, arm, steps, pixels, Stages(), strength)

    plain = run(UNGUIDED)
    found: Row = {"an unguided run repeats bit for bit": torch.equal(plain, run(UNGUIDED)), "arms": {}}
    for arm in arms:
        first, again = run(arm), run(arm)
        step = timed(partial(run, arm, 2))[1] / 2
        differs = bool(first.isfinite().all() and not torch.equal(first, plain))
        apart = ((first - again).abs().max() / (first - plain).abs().max()).item()
        found["arms"][arm] = {
            "guided run is finite and another than the stock sampler's": differs,
            "same seed twice gives the same bits": torch.equal(first, again),
            "largest difference of two runs, of the guided change": round(apart, 8),
            "strength 0 gives the stock sampler's bits": torch.equal(run(arm, strength=0.0), plain),
            "seconds from cancel to the end": [
                seconds_to_stop(partial(run, arm, 8), press * step) for press in presses
            ],
            "seconds of a guided step": round(step, 4),
        }
    return found


def seconds_to_stop(run: Callable[[], object], after: float) -> float | None:
    """Seconds from the host's cancel button, pressed `after` seconds, to the end of a run; None if it ended before."""
    import comfy.model_management as management

    pressed: list[float] = []

    def press() -> None:
        pressed.append(time.perf_counter())
        management.interrupt_current_processing()

    button = threading.Timer(after, press)
    button.start()
    try:
        run()
    except management.InterruptProcessingException:
        return round(clock() - pressed[0], 4)
    finally:
        button.cancel()
        management.interrupt_current_processing(False)
    return None


def everything(folder: Path, work: Path, steps: int, repeats: int, write: Callable[[Row], None]) -> None:
    """Measure all of it; what is there goes to `write` after every part."""
    import comfy.model_management as management

    real = load_host_encoder(folder, folder.name, SIDE)
    encoder = use_encoder(real)
    photo = torch.from_numpy(data.astronaut())[None].float() / 255
    x = encoder.preprocess(photo.to(management.get_torch_device()))
    record: Row = {"networks": {}, "steps": {}, "promises": {}}
    record["gradient"] = gradient_figures(folder, work, encoder, repeats)
    record["scores"] = {folder.name: score_figures(encoder, x, repeats)}
    write(record)
    for name, size in SIZES.items():
        networks = random_networks(size, real)
        dtypes = {"denoiser": str(networks.model.model.get_dtype()), "vae": str(networks.vae.vae_dtype)}
        record["networks"][name] = dtypes
        with tiny_autoencoder(size.config):
            arms = (UNGUIDED, *PRESETS, NAIVE)
            record["steps"][name] = {folder.name: step_figures(networks, size.pixels, arms, steps, repeats)}
            write(record)
            record["promises"][name] = promises(networks, size.pixels, PRESETS, (0.3, 1.4, 2.6))
            write(record)
        del networks
        management.unload_all_models()
        gc.collect()
        management.soft_empty_cache()


def table(figures: Row) -> str:
    """Guided steps on a CUDA device, their memory and ratios; then the encoder's gradient alone."""
    rows = []
    for size, encoders in figures["steps"].items():
        for encoder, arms in encoders.items():
            done = [{"arm": arm, **one} for arm, one in arms.items() if "failed" not in one]
            for one in sorted(done, key=lambda one: -one["seconds"]):
                gradient = one["stages"].get("encoder, gradient", {"seconds": None})
                rows.append({"networks": f"{size}, {encoder}", "encoder": gradient["seconds"], **one})
    columns = {
        "denoiser, encoder": "{networks}",
        "guided step": "{arm}",
        "s": "{seconds:.3f}",
        "first one, s": "{cold_seconds:.3f}",
        "of it the encoder, s": "{encoder:.3f}",
        "times an unguided step": "{over_unguided:.2f}",
        "times faster than the paper's": "{naive_over_this:.2f}",
        "peak above weights, GiB": "{above_weights_GiB:.1f}",
    }
    gradients = [{"arm": arm, **one} for arm, one in figures["gradient"].get("arms", {}).items()]
    names = {"gradient of a photo": "{arm}", "s": "{seconds:.3f}", "first one, s": "{cold_seconds:.3f}"}
    names["cosine with float64's"] = "{cosine:.4f}"
    return markdown(columns, rows) + "\n\n" + markdown(names, gradients)


def main(arguments: Sequence[str] | None = None) -> int:
    from comfyui_version import __version__ as host_version

    parser = program.parser(__file__, __doc__, program.FIGURES / "cuda.json", folder=True)
    parser.add_argument("--steps", type=int, default=5, help="of each run; the first one is the cold one")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each arm")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print(NO_DEVICE, file=sys.stderr)
        return 1
    more = {"transformers": transformers.__version__, "ComfyUI": host_version, "strength": 0.5}
    more["presets"] = {arm: preset_inputs(*ARMS[arm]) for arm in PRESETS}
    settings = program.settings(parser, options, device=torch.cuda.get_device_name(), **more)

    def write(record: Row) -> None:
        program.write(options.out, {"settings": settings, **record}, table)

    everything(options.encoder, options.folder, options.steps, options.repeats, write)
    return 0


if __name__ == "__main__":
    sys.exit(main())
