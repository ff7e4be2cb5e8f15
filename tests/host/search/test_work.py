"""Progress counts candidates, not steps."""

from __future__ import annotations

import pytest
from jepa_guidance.host.search.work import Work


def test_progress_is_that_of_the_candidates_that_went_through_the_denoiser():
    work = Work(4, {0: 4, 2: 2}, 8)  # 8 + 4 + 4 + 2 candidates
    shares = []
    for step, parts in enumerate(([4, 4], [4], [3, 1], [2])):
        for part in parts:
            work.add(part)
            shares.append(work.share)
        work.end_step(step)
    assert shares == pytest.approx([rows / 18 for rows in (4, 8, 12, 15, 16, 18)])
    assert (work.share, work.step) == (1, 4)


def test_a_second_call_in_a_step_does_not_count_twice():
    work = Work(2, {}, 3)
    work.add(3)
    work.add(3)
    assert (work.share, work.step) == (0.5, 1)
