"""Too many bad slides stop a run with the list; few do not."""

import pandas as pd
import pytest

from stainssl.stages.gate import too_many_bad

SLIDES = pd.DataFrame(
    {
        "slide_id": ["a", "b", "c", "d"],
        "status": ["ok", "truncated", "ok", "no-mpp"],
        "detail": ["", "The file ends early.", "", "No pixel size."],
    }
)


@pytest.mark.parametrize("limit", [0.5, 1.0])
def test_as_many_as_allowed_pass(limit: float) -> None:
    assert too_many_bad(SLIDES, limit) == ""


def test_one_more_stops_the_run_with_the_list_and_what_to_do() -> None:
    message = too_many_bad(SLIDES, 0.4)
    assert message.startswith("2 of 4 slides are bad, more than slides.max_bad_slides (0.4)")
    assert "b: truncated: The file ends early." in message
    assert "d: no-mpp: No pixel size." in message


def test_no_bad_slide_passes_at_zero() -> None:
    assert too_many_bad(SLIDES[SLIDES["status"] == "ok"], 0.0) == ""
