"""Fetch an encoder from the Hugging Face hub, on first use and only when asked."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.utils import tqdm

from .checkpoint import is_complete

FILES = ("config.json", "model.safetensors")  # neither pickles nor code
_ANSWER_S = 10  # how long the hub may take to answer before it counts as unreachable


@dataclass(frozen=True)
class HubEncoder:
    """A checkpoint on the hub.

    Attributes:
        repo_id: its repository.
        parameters: number of weights in its file, float32 each; a text tower's count, as they are fetched too.
        licence: of the weights, as their repository states it.
        commercial: whether that licence allows commercial use.
        gated: whether the repository asks for consent to its licence before it hands out the files. No credentials
            are sent, so such files have to be put in place by hand.
        model_type: of its config.json, see architectures.py.
    """

    repo_id: str
    parameters: int
    licence: str = "Apache-2.0"
    commercial: bool = True
    gated: bool = False
    model_type: str = "dinov2"

    @property
    def megabytes(self) -> int:
        """Size of the download in units of 10^6 bytes; the weights are all but some kilobytes of it."""
        return round(4 * self.parameters / 1e6)


def _encoder(owner: str, name: str, parameters: int, **facts: Any) -> tuple[str, HubEncoder]:
    return name, HubEncoder(f"{owner}/{name}", parameters, **facts)


_REGISTERS: dict[str, Any] = {"model_type": "dinov2_with_registers"}
_DINOV3: dict[str, Any] = {"model_type": "dinov3_vit", "licence": "DINOv3 License", "gated": True}
_NON_COMMERCIAL: dict[str, Any] = {"licence": "CC-BY-NC-4.0", "commercial": False}
# The counts follow from the architectures (a test builds each one). Only repositories that hold one model.safetensors
# are here; older CLIP and MetaCLIP ones hold pickles, which are not loaded.
ENCODERS: dict[str, HubEncoder] = dict(
    (
        _encoder("facebook", "dinov2-small", 22_056_576),
        _encoder("facebook", "dinov2-base", 86_580_480),
        _encoder("facebook", "dinov2-large", 304_368_640),
        _encoder("facebook", "dinov2-giant", 1_136_480_768),
        _encoder("facebook", "dinov2-with-registers-small", 22_058_112, **_REGISTERS),
        _encoder("facebook", "dinov2-with-registers-base", 86_583_552, **_REGISTERS),
        _encoder("facebook", "dinov2-with-registers-large", 304_372_736, **_REGISTERS),
        _encoder("facebook", "dinov2-with-registers-giant", 1_136_486_912, **_REGISTERS),
        _encoder("facebook", "dinov3-vits16-pretrain-lvd1689m", 21_596_544, **_DINOV3),
        _encoder("facebook", "dinov3-vitb16-pretrain-lvd1689m", 85_660_416, **_DINOV3),
        _encoder("facebook", "dinov3-vitl16-pretrain-lvd1689m", 303_129_600, **_DINOV3),
        _encoder("laion", "CLIP-ViT-B-32-laion2B-s34B-b79K", 151_277_313, licence="MIT", model_type="clip"),
        _encoder("openai", "clip-vit-large-patch14", 427_616_513, licence="MIT", model_type="clip"),
        _encoder("facebook", "metaclip-h14-fullcc2.5b", 986_109_441, model_type="clip", **_NON_COMMERCIAL),
        _encoder("google", "siglip2-base-patch16-224", 375_187_970, model_type="siglip"),
        _encoder("facebook", "ijepa_vith14_1k", 630_762_240, model_type="ijepa", **_NON_COMMERCIAL),
        _encoder("facebook", "vjepa2-vitl-fpc64-256", 325_971_328, licence="MIT", model_type="vjepa2"),
    )
)


class EncoderDownloadError(OSError):
    """A checkpoint could not be downloaded. The message says which files to put where by hand."""


class EncoderLicenceError(ValueError):
    """A checkpoint was not downloaded, since its licence forbids commercial use and nobody has agreed to that."""


def fetch_encoder(
    name: str,
    folder: str | os.PathLike,
    *,
    non_commercial: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
    endpoint: str | None = None,
) -> Path:
    """Return the folder `folder/name` with the encoder's config.json and model.safetensors.

    Downloads them unless both are there. A download goes into a hidden folder beside the target, so a
    killed one is never taken for complete; the next call goes on with the files that had arrived.
    source.json in the target records the repository and the commit. No credentials are sent.

    Args:
        name: a key of ENCODERS.
        folder: where encoders live; made if need be.
        non_commercial: fetch weights that must not be used commercially too.
        on_progress: called with (bytes done, bytes in all) while downloading, besides the bar on the
            terminal; may raise to stop. Needs huggingface_hub 1.0.
        endpoint: base address of the hub; None takes HF_ENDPOINT or the hub's own.

    Raises:
        ValueError: a name that is not in ENCODERS.
        EncoderLicenceError: weights that are not there yet and must not be used commercially.
        EncoderDownloadError: the hub is unreachable or turned off (HF_HUB_OFFLINE), asks for consent to a licence,
            what arrived is damaged, or another process is downloading the same encoder.
        OSError: the folder cannot be written.
    """
    if name not in ENCODERS:
        raise ValueError(f"unknown encoder {name!r}; known are {', '.join(ENCODERS)}")
    target = Path(folder) / name
    if is_complete(target):
        return target
    source = ENCODERS[name]
    if source.gated:
        raise EncoderDownloadError(_by_hand(name, target, f"agree to the {source.licence} there first"))
    if not source.commercial and not non_commercial:
        raise EncoderLicenceError(
            f"{name} ({source.megabytes} MB, of {source.repo_id}) is licensed {source.licence}: not for commercial use. "
            "Agree by turning non_commercial on, and it is fetched."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(target.with_name(f".{name}.lock"), timeout=1):
            if not is_complete(target):  # another process may have finished meanwhile
                _download(name, target, on_progress, endpoint)
    except Timeout:
        raise EncoderDownloadError(f"another process is downloading {name} into {target.parent}") from None
    return target


def _download(
    name: str, target: Path, on_progress: Callable[[int, int], None] | None, endpoint: str | None
) -> None:
    source = ENCODERS[name]
    arriving = target.with_name(f".{name}.download")
    for rest in arriving.rglob("*.incomplete"):  # of a killed process; the hub's client begins a file afresh
        rest.unlink()
    progress = _Progress(on_progress)
    try:
        sizes = []
        commit = None  # of the first file; the other is taken from the same one
        for file in FILES:
            url = hf_hub_url(source.repo_id, file, revision=commit, endpoint=endpoint)
            answer = get_hf_file_metadata(url, token=False, timeout=_ANSWER_S)
            commit = commit or answer.commit_hash
            sizes.append(answer.size or 1)  # unknown; a total of zero bytes would be no fraction of anything
        progress.total = sum(sizes)
        for file, size in zip(FILES, sizes, strict=True):
            bar: dict[str, Any] = {"tqdm_class": progress.bar()} if on_progress else {}
            hf_hub_download(
                source.repo_id,
                file,
                revision=commit,
                local_dir=arriving,
                endpoint=endpoint,
                token=False,
                etag_timeout=_ANSWER_S,
                **bar,
            )
            progress.file_done(size)
    # The client lets errors of its HTTP library through, and which library that is depends on its version.
    except Exception as error:
        if progress.raised:
            raise progress.raised from None
        reason = str(error).strip().split("\n")[0]
        raise EncoderDownloadError(_by_hand(name, target, f"{type(error).__name__}: {reason}")) from error
    if not is_complete(arriving):
        shutil.rmtree(arriving)
        raise EncoderDownloadError(_by_hand(name, target, "what arrived is damaged"))
    record = {"repo_id": source.repo_id, "commit": commit, "licence": source.licence}
    (arriving / "source.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    target.mkdir(exist_ok=True)
    for file in ("source.json", *FILES):  # the weights last: with them the folder counts as complete
        os.replace(arriving / file, target / file)
    shutil.rmtree(arriving)


def _by_hand(name: str, target: Path, reason: str) -> str:
    source = ENCODERS[name]
    return (
        f"cannot download {name} from the Hugging Face hub ({reason}). Put {' and '.join(FILES)} "
        f"({source.megabytes} MB) of its repository {source.repo_id} into {target}"
    )


class _Progress:
    """Adds up the bytes of a download's files from the bars of the hub's client, for on_progress."""

    def __init__(self, on_progress: Callable[[int, int], None] | None) -> None:
        self.on_progress = on_progress
        self.total = 0
        self.before = 0  # bytes of the files that are done
        self.furthest = 0
        self.raised: Exception | None = None

    def report(self, arrived: int) -> None:
        # One transfer may have two bars, and a bar goes back when the transfer starts again.
        self.furthest = max(self.furthest, min(self.before + arrived, self.total))
        if self.on_progress is None:
            return
        try:
            self.on_progress(self.furthest, self.total)
        except Exception as error:
            self.raised = error
            raise

    def file_done(self, size: int) -> None:
        if self.raised:  # from a bar whose exceptions the client dropped
            raise self.raised
        self.before += size
        self.report(0)

    def bar(self) -> type[tqdm]:
        """Return a class of progress bars that report here."""
        progress = self

        class Bar(tqdm):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                self.arrived = kwargs.get("initial", 0)
                super().__init__(*args, **kwargs)

            def update(self, n: float | None = 1) -> bool | None:
                self.arrived += int(n or 0)  # tqdm's own count stands still where no bar is shown
                progress.report(self.arrived)
                return super().update(n)

        return Bar
