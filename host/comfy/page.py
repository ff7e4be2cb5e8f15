"""What the web page shows: text under nodes, this pack's events, previews."""

from collections.abc import Callable
from typing import Any

import comfy.cli_args

from .required import PreviewMethod, get_progress_state


def wants_previews() -> bool:
    """Whether the user wants previews while samplers run; the page may change this for each prompt."""
    return bool(comfy.cli_args.args.preview_method != PreviewMethod.NoPreviews)


def node_on_page(node_id: str) -> str:
    """The node of the page that a node of the run stands for: loops run copies of nodes, which have ids of their own."""
    return str(get_progress_state().dynprompt.get_display_node_id(node_id))


def send_progress_text(text: str, node_id: str) -> None:
    """Show text under a node of the page."""
    from server import PromptServer

    PromptServer.instance.send_progress_text(text, node_on_page(node_id))


def send_event(name: str, data: dict) -> None:
    """Send one of this pack's events to the page whose prompt is running."""
    from server import PromptServer

    server = PromptServer.instance
    server.send_sync(name, data, server.client_id)


def server_runs() -> bool:
    """Whether the host serves a page; scripts that load its nodes have no server."""
    from server import PromptServer

    return hasattr(PromptServer, "instance")


def on_queued(handler: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Call `handler` with everything that is queued, before the host looks at it; what it returns is queued."""
    from server import PromptServer

    PromptServer.instance.add_on_prompt_handler(handler)


def send_to_all(name: str, data: dict) -> None:
    """Send one of this pack's events to every open page."""
    from server import PromptServer

    PromptServer.instance.send_sync(name, data)


def page_is_open() -> bool:
    """Whether the prompt that runs was queued by a page, and it is still open."""
    from server import PromptServer

    server = PromptServer.instance
    # pages begin with what they can do; scripts that listen to a socket do not
    return bool(server.sockets_metadata.get(server.client_id, {}).get("feature_flags"))


def show_text(node_id: str | None, text: str) -> None:
    """Show text under a node while the graph runs."""
    if node_id is not None:
        send_progress_text(text, node_id)
