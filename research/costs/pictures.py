"""Varied pictures to rank: photos, illustrations and renders, pinned by content.

Eighty-eight thumbnails of the host's template gallery (the kind of picture its users make) and the eight
photos that lie in scikit-image. `choose` is the rule that picked the thumbnails, NAMES what it picked.

    python dev.py run research/costs/pictures.py            download, and check that the rule still gives NAMES
"""

from __future__ import annotations

import io
import os
import platform
import sys
import zipfile
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from tools.environment.building import download, pip, setup_lock
from tools.environment.components import cache_folder
from tools.environment.pinned import Archive

ARCHIVE = Archive(
    "comfyui-workflow-templates-media-image",
    "0.3.160",
    "comfyui_workflow_templates_media_image-0.3.160-py3-none-any.whl",
    "d4a5c5541c7088f6adb1c7da41f5d7c1c14a037eda6a61cd8b4b76c251faaa93",
    90,
)
FOLDER = "comfyui_workflow_templates_media_image/templates/"
COUNT = 88
ALIKE = 0.85  # correlation of two 8 x 8 thumbnails
PHOTOS = (
    "astronaut",
    "camera",
    "chelsea",
    "coffee",
    "coins",
    "hubble_deep_field",
    "immunohistochemistry",
    "rocket",
)
NAMES = (
    "01_get_started_text_to_image",
    "02_qwen_Image_edit_subgraphed",
    "Image_capybara_v0_1_image_edit",
    "Image_capybara_v0_1_text_to_image",
    "api_bytedance_seedream_5_0_lite_image_edit",
    "api_elevenLabs_speech_to_text",
    "api_elevenlabs_speech_to_speech",
    "api_grok_image_edit",
    "api_grok_imagine_image_quality_image_edit",
    "api_grok_text_to_image",
    "api_kling_o3_image",
    "api_kling_v3_t2i",
    "api_krea2_t2i",
    "api_luma_uni_1_image_create",
    "api_magnific_image_relight",
    "api_magnific_image_upscale_creative",
    "api_magnific_image_upscale_precise",
    "api_nano_banana_2_lite_image_edit",
    "api_openai_gpt_image_2_image_edit",
    "api_openai_gpt_image_2_t2i",
    "api_quiver_text_to_svg",
    "api_recraft_style_reference",
    "api_recraft_v4_text_to_vector",
    "api_reve_image_remix",
    "api_wavespeed_image_upscale",
    "audio_stable_audio_example",
    "default",
    "flux1_krea_dev",
    "flux_depth_lora_example",
    "flux_dev_checkpoint_example",
    "flux_fill_inpaint_example",
    "flux_kontext_dev_basic",
    "flux_redux_model_example",
    "flux_schnell_full_text_to_image",
    "hidream_e1_1",
    "hidream_i1_dev",
    "hidream_i1_full",
    "image-qwen_image_edit_2511_lora_inflation",
    "image_anima_preview",
    "image_boogu_image_0_1_edit",
    "image_chroma1_radiance_text_to_image",
    "image_chrono_edit_14B",
    "image_ernie_image",
    "image_firered_image_edit1_1",
    "image_flux2",
    "image_flux2_fp8",
    "image_flux2_klein_image_edit_4b_base",
    "image_flux2_klein_image_edit_4b_distilled",
    "image_flux2_klein_text_to_image",
    "image_flux2_text_to_image_9b",
    "image_hidream_o1",
    "image_ideogram4_t2i",
    "image_kandinsky5_t2i",
    "image_lens_t2i",
    "image_longcat_image_edit",
    "image_longcat_text_to_image",
    "image_netayume_lumina_t2i",
    "image_newbieimage_exp0_1-t2i",
    "image_omnigen2_t2i",
    "image_pixeldit_t2i",
    "image_qwen_Image_2512_controlnet",
    "image_qwen_image_2512_with_2steps_lora",
    "image_qwen_image_edit",
    "image_qwen_image_edit_2509",
    "image_qwen_image_edit_2511",
    "image_qwen_image_instantx_controlnet",
    "image_qwen_image_layered",
    "image_qwen_image_union_control_lora",
    "image_z_image",
    "image_z_image_turbo_fun_union_controlnet",
    "sd3.5_large_blur",
    "sd3.5_large_depth",
    "sdxl_refiner_prompt_example",
    "sdxl_revision_text_prompts",
    "sdxlturbo_example",
    "template_eric_seedance_5_subject_and_outfit_combine",
    "template_rob_realistic_2k_images_quick_variations",
    "templates-color_illustration",
    "templates-image_to_real",
    "templates_3d_match_game_art_style.app",
    "templates_ohneis_i2v",
    "templates_rob_portrait_light_migration.app",
    "utility_hitpaw_general_image_enhance",
    "utility_interpolation_image_upscale",
    "utility_nanobanana_pro_illustration_upscale",
    "utility_recraft_creative_image_upscale",
    "utility_recraft_crisp_image_upscale",
    "utility_z_image_turbo_2k_upscaler.app",
)


def wheel(cache: Path | None = None) -> Path:
    """The verified archive, downloaded with pip into dev.py's cache unless it is there.

    Raises:
        SetupError: the package index is out of reach, or serves another file.
    """
    cache = cache or cache_folder(os.environ, platform.system(), Path.home())
    with setup_lock(cache / ".lock"):
        return download(ARCHIVE, cache / "downloads", partial(pip, Path(sys.executable)))


def read_picture(content: bytes) -> Tensor | None:
    """A picture (H, W, 3) float32 in [0, 1], transparent parts white; None for an animation."""
    with Image.open(io.BytesIO(content)) as picture:
        if getattr(picture, "n_frames", 1) > 1:
            return None
        layers = picture.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")
    return pil_to_tensor(flat).movedim(0, -1).float() / 255


def choose(archive: Path, count: int = COUNT) -> list[str]:
    """Names of `count` still pictures of the archive, evenly spread over the sorted names.

    The first picture of every template, without animations, and without those that look like one before
    them (edits and workflows of one picture, empty canvases).
    """
    kept: list[str] = []
    signatures = torch.zeros(0, 192)
    with zipfile.ZipFile(archive) as content:
        for path in sorted(content.namelist()):
            if not path.startswith(FOLDER) or not path.endswith("-1.webp"):
                continue
            picture = read_picture(content.read(path))
            if picture is None:
                continue
            small = torch.nn.functional.interpolate(
                picture.movedim(-1, 0)[None], (8, 8), mode="bilinear", antialias=True
            ).flatten()
            signature = torch.nn.functional.normalize(small - small.mean(), dim=0)
            if (signatures @ signature > ALIKE).any():
                continue
            signatures = torch.cat([signatures, signature[None]])
            kept.append(path.removeprefix(FOLDER).removesuffix("-1.webp"))
    count = min(count, len(kept))
    return [kept[index * len(kept) // count] for index in range(count)]


def gallery(names: Iterable[str] = NAMES, archive: Path | None = None) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, picture (H, W, 3) in [0, 1]) of the host's gallery."""
    with zipfile.ZipFile(archive or wheel()) as content:
        for name in names:
            picture = read_picture(content.read(f"{FOLDER}{name}-1.webp"))
            assert picture is not None, name
            yield name, picture


def photos() -> Iterator[tuple[str, Tensor]]:
    """Yield (name, photo (H, W, 3) in [0, 1]) of those that lie in scikit-image's wheel."""
    from skimage import data

    for name in PHOTOS:
        photo = torch.from_numpy(getattr(data, name)()).float() / 255
        yield name, photo if photo.ndim == 3 else photo[..., None].repeat(1, 1, 3)


def pictures() -> Iterator[tuple[str, Tensor]]:
    """Yield all 96 (name, picture (H, W, 3) float32 in [0, 1]), photos first."""
    yield from photos()
    yield from gallery()


def main() -> int:
    chosen = choose(wheel())
    print(" ".join(chosen))
    print(
        f"{len(chosen)} chosen; {'the list in this file' if tuple(chosen) == NAMES else 'NOT the list here'}"
    )
    return int(tuple(chosen) != NAMES)


if __name__ == "__main__":
    sys.exit(main())
