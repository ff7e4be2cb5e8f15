"""What nodes did, in the metadata of saved images, also where the host takes their results from its cache."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

METADATA_KEY = "jepa_guidance"
MOST_KEPT = 64  # nodes and settings; the host's own cache has fewer by far

# A node and the signature of what its result depends on -> its notes; the latest last.
_kept: dict[tuple[str, str], dict[str, Any]] = {}


class _Kept(dict[str, Any]):
    """A note of an earlier queue item. If the node runs again, it goes."""


def note_in_images(hidden: Any, settings: dict[str, Any], trace: dict, part: str = "") -> None:
    """Have the host's save nodes write the settings and the trace into the images of this queue item.

    They are also kept, for later queue items in which the host takes the node's result from its cache (see add_kept).
    Several runs of a node in one queue item, as for a list of latents, are numbered in their order.

    Args:
        hidden: the node's hidden inputs: extra_pnginfo, the metadata that the host's save nodes write key by key; prompt;
            and unique_id.
        settings: the node's inputs; only strings, numbers and booleans are kept.
        trace: what the node did, as JSON.
        part: which of several things that the node did in one run, "" if it is one.
    """
    if hidden.extra_pnginfo is None:
        return
    node = str(hidden.unique_id)
    plain = {name: value for name, value in settings.items() if isinstance(value, str | int | float | bool)}
    noted = _notes(hidden.extra_pnginfo)
    for name in _of_node(node, noted):
        if isinstance(noted[name], _Kept):
            del noted[name]
    _add(noted, f"{node}, {part}" if part else node, {"settings": plain, "trace": trace})
    if (signature := signature_of(hidden.prompt, node)) is not None:
        _kept.pop((node, signature), None)
        _kept[node, signature] = _of_node(node, noted)
        while len(_kept) > MOST_KEPT:
            del _kept[next(iter(_kept))]


def add_kept(queued: dict[str, Any]) -> dict[str, Any]:
    """Note in a queue item what is known of its nodes from earlier ones; returns it.

    A node with the same inputs, and the same nodes above it, gives the same result: the host may take it from its cache
    and not run the node.

    Args:
        queued: what the page sent to the host: "prompt" and "extra_data". A shared workflow may hold anything there.
    """
    prompt, more = queued.get("prompt"), queued.get("extra_data")
    info = more.get("extra_pnginfo") if isinstance(more, dict) else None
    if isinstance(info, dict):
        for node in {node for node, _ in _kept}:
            for name, note in _kept.get((node, signature_of(prompt, node) or ""), {}).items():
                _notes(info)[name] = _Kept(note)
    return queued


def signature_of(prompt: Any, node: str) -> str | None:
    """A hash of a node of a prompt and of all nodes above it, with their inputs; None if they are not all there."""
    found: dict[str, Any] = {}
    remaining = [node]
    while remaining:
        name = remaining.pop()
        entry = prompt.get(name) if isinstance(prompt, Mapping) else None
        if not isinstance(entry, Mapping) or not isinstance(entry.get("inputs"), Mapping):
            return None
        inputs = entry["inputs"]
        links = [value[0] for value in inputs.values() if isinstance(value, list) and len(value) == 2]
        found[name] = [entry.get("class_type"), {key: _plain(value) for key, value in inputs.items()}]
        remaining += [link for link in links if isinstance(link, str) and link not in found]
    text = json.dumps(found, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _plain(value: Any) -> Any:
    """An input as it was queued and as the host converts it: 2 and 2.0 are one."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _notes(info: dict[str, Any]) -> dict[str, Any]:
    """This pack's part of the metadata."""
    if not isinstance(info.get(METADATA_KEY), dict):
        info[METADATA_KEY] = {}
    noted: dict[str, Any] = info[METADATA_KEY]
    return noted


def _of_node(node: str, noted: Mapping[str, Any]) -> dict[str, Any]:
    """The notes of a node."""
    return {name: note for name, note in noted.items() if name == node or name.startswith(f"{node}, ")}


def _add(noted: dict[str, Any], name: str, run: dict[str, Any]) -> None:
    """Add a run of a node. The host runs a node once for each entry of a list, and saves the pictures of all runs after."""
    runs = [key for key in noted if key.startswith(f"{name}, run ")]
    if name not in noted and not runs:
        noted[name] = run
        return
    if name in noted:
        noted[f"{name}, run 1"] = noted.pop(name)
    noted[f"{name}, run {max(len(runs), 1) + 1}"] = run
