"""JEPA Guidance: a ComfyUI node pack for rare images from the prompt you already have (arXiv 2605.24631)."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Called by ComfyUI. Imported here and not above, so that test tools may import the folder without a host."""
    from .nodes import JEPAExtension

    return JEPAExtension()
