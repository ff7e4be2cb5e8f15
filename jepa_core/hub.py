"""Fetch a DINOv2 checkpoint from the Hugging Face hub, on first use and only when asked."""

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
    """A checkpoint on the hub: its repository, its number of weights (float32 each) and its licence."""

    repo_id: str
    parameters: int
    licence: str = "Apache-2.0"

    @property
    def megabytes(self) -> int:
        """Size of the download in units of 10^6 bytes; the weights are all but some kilobytes of it."""
        return round(4 * self.parameters / 1e6)


# The counts follow from the architectures (a test builds each one); the repositories hold nothing else.
ENCODERS: dict[str, HubEncoder] = {
    name: HubEncoder(f"facebook/{name}", parameters)
    for name, parameters in {
        "dinov2-small": 22_056_576,
        "dinov2-base": 86_580_480,
        "dinov2-large": 304_368_640,
        "dinov2-giant": 1_136_480_768,
        "dinov2-with-registers-small": 22_058_112,
        "dinov2-with-registers-base": 86_583_552,
        "dinov2-with-registers-large": 304_372_736,
        "dinov2-with-registers-giant": 1_136_486_912,
    }.items()
}


class EncoderDownloadError(OSError):
    """A checkpoint could not be downloaded. The message says which files to put where by hand."""


def fetch_encoder(
    name: str,
    folder: str | os.PathLike,
    *,
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
        on_progress: called with (bytes done, bytes in all) while downloading, besides the bar on the
            terminal; may raise to stop. Needs huggingface_hub 1.0.
        endpoint: base address of the hub; None takes HF_ENDPOINT or the hub's own.

    Raises:
        ValueError: a name that is not in ENCODERS.
        EncoderDownloadError: the hub is unreachable or turned off (HF_HUB_OFFLINE), what arrived is damaged,
            or another process is downloading the same encoder.
        OSError: the folder cannot be written.
    """
    if name not in ENCODERS:
        raise ValueError(f"unknown encoder {name!r}; known are {', '.join(ENCODERS)}")
    target = Path(folder) / name
    if is_complete(target):
        return target
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
