"""The commands report and select: a table looked at, and a part of its pictures chosen."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ..duplicates import DISTANCE
from .collection import NOVELTY, SCORE, Collection, duplicates_of, read_collection
from .options import OptionError, check_output, need_packages, refused, unwritable
from .report import THUMBNAILS, write_report
from .selection import Amount, amount, choose, link_files, write_list

_Found = TypeVar("_Found")


def add_report(parsers: Any) -> None:
    """Add `report`."""
    parser = parsers.add_parser(
        "report",
        help="show a table as one HTML file",
        description="Show a table as one HTML file that needs no network: distribution, the rarest and the most typical "
        "pictures, near-duplicates, and all rows with filters.",
    )
    parser.add_argument("table", type=Path, metavar="TABLE.parquet", help="made by score")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.html")
    parser.add_argument(
        "--thumbnails",
        type=_count,
        default=THUMBNAILS,
        metavar="N",
        help="at most N pictures in small, some 5 kB each (default: %(default)s)",
    )
    _add_distance(parser)
    parser.set_defaults(run=report)


def report(options: argparse.Namespace) -> None:
    """Write a report. Raises OptionError."""
    need_packages()
    from tqdm import tqdm

    check_output(options.out, ".html")
    collection = _collection(options.table)
    groups = _duplicates(options, collection)
    try:
        with tqdm(total=min(options.thumbnails, len(collection)), unit=" thumbnails", disable=None) as bar:
            write_report(
                options.out,
                options.table.name,
                collection,
                groups,
                options.distance,
                options.thumbnails,
                on_picture=bar.update,
            )
    except OSError as error:
        raise unwritable(options.out, error) from error
    print(f"{options.out}: {len(collection)} pictures, {len(groups)} groups of duplicates")


def add_select(parsers: Any) -> None:
    """Add `select`."""
    parser = parsers.add_parser(
        "select",
        help="choose pictures of a table: the rare, without duplicates, balanced",
        description="Choose pictures of a table, the rarest first. First duplicates are dropped, then the common thinned "
        "out, then the rarest kept. An amount is a number of pictures, or a share such as 25%.",
    )
    parser.add_argument("table", type=Path, metavar="TABLE.parquet", help="made by score")
    parser.add_argument("--keep", type=_amount, metavar="AMOUNT", help="how many, the rarest (default: all)")
    parser.add_argument("--by", choices=(SCORE, NOVELTY), help="what rare means (default: score, if there)")
    parser.add_argument(
        "--no-duplicates", action="store_true", help="of pictures that are alike, only the largest"
    )
    parser.add_argument(
        "--cap-common",
        type=_amount,
        metavar="AMOUNT",
        help="of the more typical half keep at most so many, evenly spread",
    )
    parser.add_argument(
        "--balance",
        choices=("folder",),
        help="as many of each folder as of any other; without --keep as many as the smallest has",
    )
    _add_distance(parser)
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--out", type=Path, metavar="FILE.txt", help="a new list of paths, one a line")
    target.add_argument("--link", type=Path, metavar="FOLDER", help="a new folder of hard links to them")
    parser.set_defaults(run=select)


def select(options: argparse.Namespace) -> None:
    """Choose pictures, and list or link them. Raises OptionError."""
    need_packages()
    if options.out:
        check_output(options.out, ".txt")
    collection = _collection(options.table)
    criterion = options.by or next(iter(collection.criteria), SCORE)
    if criterion not in collection.criteria:
        made = "--reference" if criterion == NOVELTY else "--projection, not --no-score"
        raise refused("--by", criterion, f"{options.table} has none; score with {made}")
    groups = _duplicates(options, collection) if options.no_duplicates else []
    chosen = choose(
        collection, criterion, groups, options.keep, options.cap_common, options.balance is not None
    )
    paths = [collection.paths[place] for place in chosen]
    try:
        if options.out:
            write_list(options.out, paths)
        else:
            link_files(options.link, paths)
    except ValueError as error:
        raise OptionError(str(error)) from error
    print(f"{options.out or options.link}: {len(paths)} of {len(collection)} pictures, by {criterion}")


def _add_distance(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--distance",
        type=_distance,
        default=DISTANCE,
        metavar="D",
        help="pictures are alike if 1 - the cosine of their embeddings is at most D (default: %(default)s)",
    )


def _collection(table: Path) -> Collection:
    return _read(table, lambda: read_collection(table))


def _duplicates(options: argparse.Namespace, collection: Collection) -> list[list[int]]:
    return _read(options.table, lambda: duplicates_of(options.table, collection, options.distance))


def _read(table: Path, read: Callable[[], _Found]) -> _Found:
    try:
        return read()
    except (ValueError, OSError) as error:
        raise refused("TABLE", table, error) from error


def _amount(text: str) -> Amount:
    try:
        return amount(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is less than 0")
    return number


def _distance(text: str) -> float:
    number = float(text)
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to below 1")
    return number
