"""The host's samplers: one of each way to call the model and to keep a state, which all tests run, and the others."""

from __future__ import annotations

from collections.abc import Iterable

import comfy.samplers
import pytest

WAYS = {
    "euler",
    "euler_ancestral",
    "euler_cfg_pp",
    "heun",
    "dpm_2_ancestral",
    "lms",
    "dpm_fast",
    "dpmpp_2s_ancestral_cfg_pp",
    "dpmpp_2m_sde",
    "dpmpp_3m_sde",
    "lcm",
    "res_multistep",
    "uni_pc",
    "uni_pc_bh2",
    "sa_solver",
    "sa_solver_pece",
}
OTHERS = [name for name in comfy.samplers.SAMPLER_NAMES if name not in WAYS]


def others_long(names: Iterable[str]) -> list:
    """Samplers for pytest.mark.parametrize; marked long but for those of WAYS."""
    return [name if name in WAYS else pytest.param(name, marks=pytest.mark.long) for name in names]
