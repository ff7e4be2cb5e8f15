"""Download an encoder from the Hugging Face hub, on first use and only when asked."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.utils import tqdm

from .checkpoint import is_complete
from .clip_tokenizer import MERGES, VOCABULARY, has_tokenizer
from .writing import is_unwritable, writing_into

FILES = ("config.json", "model.safetensors")  # no pickles, no code
TOKENIZER_FILES = (MERGES, VOCABULARY)  # of models with a text tower
_TIMEOUT_S = 10  # for the hub's answers


@dataclass(frozen=True)
class HubEncoder:
    """A checkpoint on the hub.

    Attributes:
        repo_id: its repository.
        parameters: number of float32 weights in its file, including any text tower.
        licence: of the weights, as stated in the repository.
        commercial: whether that licence allows commercial use.
        gated: whether downloads require consent to the licence. No credentials are sent, so such files have to be put
            in place by hand.
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
        """Size of the download in 10^6 bytes, without a few kilobytes of configuration."""
        return round(4 * self.parameters / 1e6)


def _encoder(owner: str, name: str, parameters: int, **facts: Any) -> tuple[str, HubEncoder]:
    return name, HubEncoder(f"{owner}/{name}", parameters, **facts)


_REGISTERS: dict[str, Any] = {"model_type": "dinov2_with_registers"}
_DINOV3: dict[str, Any] = {"model_type": "dinov3_vit", "licence": "DINOv3 License", "gated": True}
_NON_COMMERCIAL: dict[str, Any] = {"licence": "CC-BY-NC-4.0", "commercial": False}
# Only repositories with a single model.safetensors; older CLIP and MetaCLIP ones hold pickles, which are not loaded. A
# test builds each architecture and checks the counts.
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
    """A checkpoint was not downloaded: its licence forbids commercial use, and the user has not agreed to it."""


def fetch_encoder(
    name: str,
    folder: str | os.PathLike,
    *,
    non_commercial: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
    endpoint: str | None = None,
) -> Path:
    """Return the folder `folder/name` with the encoder's config.json and model.safetensors.

    Downloads them unless both are there. A download goes into a hidden folder next to the target, so an
    interrupted one is never mistaken for a complete one; the next call resumes after the files that are complete.
    source.json in the target records the repository and the commit. No credentials are sent.

    Args:
        name: a key of ENCODERS.
        folder: the folder of all encoders; created if missing.
        non_commercial: allow weights whose licence forbids commercial use.
        on_progress: called with (bytes done, total bytes) while downloading, in addition to the bar on the
            terminal; may raise to stop. Needs huggingface_hub 1.0.
        endpoint: base URL of the hub; None takes HF_ENDPOINT or the default.

    Raises:
        ValueError: name is not in ENCODERS.
        EncoderLicenceError: the weights are missing and their licence forbids commercial use.
        EncoderDownloadError: the hub is unreachable or disabled (HF_HUB_OFFLINE), the repository requires consent to a
            licence, the downloaded files are damaged, or another process is downloading the same encoder.
        UnwritableError: the folder cannot be written to.
    """
    if name not in ENCODERS:
        raise ValueError(f"unknown encoder {name!r}; known are {', '.join(ENCODERS)}")
    target = Path(folder) / name
    if is_complete(target):
        return target
    source = ENCODERS[name]
    download = _Download(name, target, FILES, f"{source.megabytes} MB", "source.json", is_complete)
    if source.gated:
        raise EncoderDownloadError(download.by_hand(f"agree to the {source.licence} there first"))
    if not source.commercial and not non_commercial:
        raise EncoderLicenceError(
            f"{name} ({source.megabytes} MB, of {source.repo_id}) is licensed {source.licence}: not for commercial use. "
            "Turn non_commercial on to agree and download it."
        )
    _download_once(download, on_progress, endpoint)
    return target


def fetch_tokenizer(name: str, folder: str | os.PathLike, *, endpoint: str | None = None) -> None:
    """Download merges.txt and vocab.json of a CLIP into `folder/name`, unless a tokenizer is there.

    They have the licence of the weights, which fetch_encoder asks about.

    Args:
        name: a key of ENCODERS with the model_type clip.
        folder, endpoint: as for fetch_encoder.

    Raises:
        EncoderDownloadError, UnwritableError: as fetch_encoder.
    """
    target = Path(folder) / name
    if not has_tokenizer(target):
        download = _Download(name, target, TOKENIZER_FILES, "2 MB", "tokenizer_source.json", has_tokenizer)
        _download_once(download, None, endpoint)


class _Download(NamedTuple):
    """Files of an encoder that belong together.

    Attributes:
        name: of the encoder.
        target: its folder.
        files: the last one makes the folder complete.
        size: of all of them, for the user.
        record: the file that says where they come from.
        is_complete: whether a folder has them, undamaged.
    """

    name: str
    target: Path
    files: tuple[str, ...]
    size: str
    record: str
    is_complete: Callable[[Path], bool]

    def by_hand(self, reason: str) -> str:
        """The message for files that cannot be downloaded."""
        return (
            f"cannot download {self.name} from the Hugging Face hub ({reason}). Put {' and '.join(self.files)} "
            f"({self.size}) of its repository {ENCODERS[self.name].repo_id} into {self.target}"
        )


def _download_once(
    download: _Download, on_progress: Callable[[int, int], None] | None, endpoint: str | None
) -> None:
    """Download unless another process finishes meanwhile."""
    name, target = download.name, download.target
    with writing_into(target.parent, f"{name} ({download.size})"):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(target.with_name(f".{name}.lock"), timeout=1):
                if not download.is_complete(target):
                    _download(download, on_progress, endpoint)
        except Timeout:
            raise EncoderDownloadError(
                f"another process is downloading {name} into {target.parent}; try again when it is done"
            ) from None


def _download(
    download: _Download, on_progress: Callable[[int, int], None] | None, endpoint: str | None
) -> None:
    target, files = download.target, download.files
    source = ENCODERS[download.name]
    arriving = target.with_name(f".{download.name}.download")
    for rest in arriving.rglob(
        "*.incomplete"
    ):  # of an interrupted download; the hub's client restarts the file
        rest.unlink()
    progress = _Progress(on_progress)
    try:
        sizes = []
        commit = None  # of the first file; the other comes from the same commit
        for file in files:
            url = hf_hub_url(source.repo_id, file, revision=commit, endpoint=endpoint)
            answer = get_hf_file_metadata(url, token=False, timeout=_TIMEOUT_S)
            commit = commit or answer.commit_hash
            sizes.append(answer.size or 1)  # unknown; avoids a total of zero bytes
        progress.total = sum(sizes)
        for file, size in zip(files, sizes, strict=True):
            bar: dict[str, Any] = {"tqdm_class": progress.bar()} if on_progress else {}
            hf_hub_download(
                source.repo_id,
                file,
                revision=commit,
                local_dir=arriving,
                endpoint=endpoint,
                token=False,
                etag_timeout=_TIMEOUT_S,
                **bar,
            )
            progress.file_done(size)
    # The client passes on errors of its HTTP library, which differs between versions.
    except Exception as error:
        if progress.raised:
            raise progress.raised from None
        if is_unwritable(error):
            raise
        reason = str(error).strip().split("\n")[0]
        raise EncoderDownloadError(download.by_hand(f"{type(error).__name__}: {reason}")) from error
    if not download.is_complete(arriving):
        shutil.rmtree(arriving)
        raise EncoderDownloadError(download.by_hand("the downloaded files are damaged"))
    record = {"repo_id": source.repo_id, "commit": commit, "licence": source.licence}
    (arriving / download.record).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    target.mkdir(exist_ok=True)
    for file in (download.record, *files):  # in this order, since the last makes the folder complete
        os.replace(arriving / file, target / file)
    shutil.rmtree(arriving)


class _Progress:
    """Sums the bytes of all files from the hub client's progress bars, for on_progress."""

    def __init__(self, on_progress: Callable[[int, int], None] | None) -> None:
        self.on_progress = on_progress
        self.total = 0
        self.before = 0  # bytes of completed files
        self.furthest = 0
        self.raised: Exception | None = None

    def report(self, arrived: int) -> None:
        # A transfer may have two bars, and a bar goes back if the transfer restarts.
        self.furthest = max(self.furthest, min(self.before + arrived, self.total))
        if self.on_progress is None:
            return
        try:
            self.on_progress(self.furthest, self.total)
        except Exception as error:
            self.raised = error
            raise

    def file_done(self, size: int) -> None:
        if self.raised:  # the client swallowed the exception from a bar
            raise self.raised
        self.before += size
        self.report(0)

    def bar(self) -> type[tqdm]:
        """Return a progress bar class that reports to this object."""
        progress = self

        class Bar(tqdm):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                self.arrived = kwargs.get("initial", 0)
                super().__init__(*args, **kwargs)

            def update(self, n: float | None = 1) -> bool | None:
                self.arrived += int(n or 0)  # tqdm does not count when no bar is shown
                progress.report(self.arrived)
                return super().update(n)

        return Bar
