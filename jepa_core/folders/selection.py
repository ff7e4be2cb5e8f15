"""A part of a table's pictures: the rare kept, duplicates dropped, the common thinned out; as a list, or as hard links."""

import errno
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .collection import Collection, folder_and_name
from .listing import path_of_text


class SelectionError(ValueError):
    """A selection cannot be made or written. The message names the file or folder, and the fix."""


@dataclass(frozen=True)
class Amount:
    """A number of pictures, or a share of them.

    Attributes:
        value: the number, 1 at least; or the share, above 0 and at most 1.
        share: whether it is one.
    """

    value: float
    share: bool

    def of(self, count: int) -> int:
        """The number, of so many; of a share, rounded up."""
        # 0.07 * 100 is a little more than 7
        return min(count, math.ceil(self.value * count - 1e-9) if self.share else int(self.value))


def amount(text: str) -> Amount:
    """Parse "200", "0.25" or "25%". Raises ValueError."""
    percent = text.endswith("%")
    try:
        number = float(text.removesuffix("%")) / (100 if percent else 1)
    except ValueError:
        number = math.nan  # neither of both below
    share = percent or "." in text
    if not (0 < number <= 1 if share else number >= 1 and number.is_integer()):
        raise ValueError(f"{text!r} is neither a whole number from 1 nor a share such as 25% or 0.25")
    return Amount(number, share)


def choose(
    collection: Collection,
    criterion: str,
    groups: Iterable[Sequence[int]] = (),
    keep: Amount | None = None,
    cap_common: Amount | None = None,
    balance: bool = False,
) -> list[int]:
    """Choose pictures, the rarest first. Equal tables give equal choices.

    Args:
        criterion: score or novelty; pictures without it are not chosen.
        groups: duplicates, the best first; of each only the first picture that has the criterion takes part.
        cap_common: of the more typical half of what is left, how many stay at most, evenly spread from rare to typical.
        keep: how many of what is then left; the rarest. None for all.
        balance: as many from each folder as from any other, as far as they go; the rarest of each. With keep None, as
            many as the smallest has.
    """
    order = collection.rarest_first(criterion)
    known = set(order)
    dropped: set[int] = set()
    for group in groups:
        dropped.update([place for place in group if place in known][1:])
    order = [place for place in order if place not in dropped]
    if cap_common:
        half = len(order) // 2
        common = order[len(order) - half :]
        order = order[: len(order) - half] + evenly(common, cap_common.of(half))
    if balance:
        return balanced(order, [folder_and_name(path)[0] for path in collection.paths], keep)
    return order if keep is None else order[: keep.of(len(order))]


def evenly(order: Sequence[int], count: int) -> list[int]:
    """`count` entries at equal distances, in their order."""
    return [order[(2 * place + 1) * len(order) // (2 * count)] for place in range(count)]


def balanced(order: Sequence[int], folders: Sequence[str], keep: Amount | None) -> list[int]:
    """Take from each folder in turn its rarest, until there are enough; see choose."""
    turns: dict[int, int] = {}
    taken: dict[str, int] = {}
    for place in order:
        turns[place] = taken[folders[place]] = taken.get(folders[place], -1) + 1
    if keep is None:
        turn = min(taken.values(), default=0)
        return [place for place in order if turns[place] <= turn]
    by_turn = sorted(order, key=lambda place: turns[place])  # stable: within a turn the rarest first
    chosen = set(by_turn[: keep.of(len(order))])
    return [place for place in order if place in chosen]


def write_list(file: Path, paths: Iterable[str]) -> None:
    """Write a new text file of paths, one a line, UTF-8.

    Raises:
        SelectionError: the file exists or cannot be written, or a path has a line break.
    """
    lines = list(paths)
    if broken := [path for path in lines if len(path.splitlines()) > 1]:
        raise SelectionError(f"the name of {broken[0]!r} has a line break; rename it, or use --link")
    try:
        with open(file, "x", encoding="utf-8", newline="\n") as opened:
            opened.writelines(f"{path}\n" for path in lines)
    except FileExistsError as error:
        raise SelectionError(f"--out {file}: it exists; name a new file") from error
    except OSError as error:
        raise SelectionError(f"--out {file}: it cannot be written ({error.strerror})") from error


def link_files(folder: Path, paths: Iterable[str]) -> None:
    """Make hard links to files in a folder, in the folders that they have below the one that holds them all.

    Everything is checked before the first link.

    Raises:
        SelectionError: a file is not there, the folder holds something, is on another file system, or cannot be written.
    """
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise SelectionError(f"--link {folder}: it is not an empty folder; name a new one")
    if not folder.parent.is_dir():
        raise SelectionError(f"--link {folder}: there is no folder {folder.parent}; make it first")
    files = [Path(os.path.realpath(path_of_text(path))) for path in paths]
    if missing := [file for file in files if not file.is_file()]:
        raise SelectionError(
            f"{len(missing)} of {len(files)} files are not there, such as {missing[0]}; score the folder again"
        )
    device = os.stat(folder.parent).st_dev
    if far := [file for file in files if os.stat(file).st_dev != device]:
        raise _far(folder, far[0])
    root = Path(os.path.commonpath([file.parent for file in files])) if files else Path()
    try:
        folder.mkdir(exist_ok=True)
        for file in dict.fromkeys(files):
            target = folder / file.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(file, target)
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise _far(folder, file) from error
        raise SelectionError(
            f"--link {folder}: {file} cannot be linked ({error.strerror}); use --out"
        ) from error


def _far(folder: Path, file: Path) -> SelectionError:
    return SelectionError(
        f"--link {folder}: {file} is on another file system, where hard links cannot lead; "
        "name a folder on that one, or use --out"
    )
