"""A run stops with a list if too many slides are bad, and continues otherwise."""

from pathlib import Path

import pandas as pd
import pytest

from stainssl.figures.pages import slides_page
from stainssl.stages.gate import allowed_bad, too_many_bad

SLIDES = pd.DataFrame(
    {
        "slide_id": ["a", "b", "c", "d"],
        "status": ["ok", "truncated", "ok", "no-mpp"],
        "detail": ["", "The file ends early.", "", "No pixel size."],
    }
)


TABLE = Path("results/cohorts/c/default/slides.csv")


@pytest.mark.parametrize("limit", [0.4, 0.5, 1.0])
def test_up_to_the_limit_is_accepted(limit: float) -> None:
    assert too_many_bad(SLIDES, limit, TABLE) == ""


def test_above_the_limit_the_message_has_the_slides_the_file_and_the_key() -> None:
    message = too_many_bad(SLIDES, 0.25, TABLE)
    assert message.startswith("2 of 4 slides are bad (1 truncated, 1 no-mpp)")
    assert "slides.max_bad_slides (0.25) allows 1." in message
    assert str(TABLE) in message
    assert "b: truncated: The file ends early." in message
    assert "d: no-mpp: No pixel size." in message


def test_a_long_list_is_truncated() -> None:
    bad = pd.DataFrame({"slide_id": range(100), "status": "empty", "detail": "No tissue."})
    lines = too_many_bad(bad, 0.1, TABLE).split("\n")
    assert len(lines) == 22
    assert lines[-1] == "and 80 more"


def test_no_bad_slide_is_accepted_at_a_limit_of_zero() -> None:
    assert too_many_bad(SLIDES[SLIDES["status"] == "ok"], 0.0, TABLE) == ""


@pytest.mark.parametrize(
    ("slides", "share", "allowed"),
    [(9, 0.1, 1), (10, 0.1, 1), (11, 0.1, 2), (100, 0.1, 10), (1, 0.1, 0), (2, 0.9, 1), (9, 0, 0),
     (3, 1, 3), (0, 0.1, 0)],
)  # fmt: skip
def test_number_of_bad_slides_allowed_by_a_share(slides: int, share: float, allowed: int) -> None:
    assert allowed_bad(slides, share) == allowed


def test_the_page_lists_bad_slides_first_and_escapes_html() -> None:
    slides = SLIDES.assign(tiles_kept=[3, 0, 4, float("nan")], mpp=0.5, mpp_source="<b>")
    text = slides_page(slides, "clinic")
    assert text.index("The file ends early.") < text.index(">a<")
    assert "4 slides: 2 ok, 1 truncated, 1 no-mpp." in text
    assert "<b>" not in text
