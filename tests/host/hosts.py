"""Marks tests of features that the oldest supported host does not have."""

from __future__ import annotations

import pytest
from jepa_guidance.host.comfy.required import HOST_VERSION, OLDEST_HOST

newer_host = pytest.mark.skipif(HOST_VERSION == OLDEST_HOST, reason=f"came after ComfyUI {OLDEST_HOST}")
