"""A spool returns the arrays that it keeps and leaves no file."""

from __future__ import annotations

import numpy as np

from stainssl.stores.spool import Spool


def test_spooled_arrays_are_read_back_and_leave_no_file(tmp_path, rng):
    spool = Spool(tmp_path / "here")
    arrays = [rng.normal(size=(n, 5)).astype(np.float16) for n in (7, 0, 1, 300)]
    found = [spool.keep(features) for features in arrays]
    for expected, spooled in zip(arrays, found, strict=True):
        assert len(spooled) == len(expected)
        assert spooled.shape == expected.shape
        for rows in (slice(None), slice(1, 200, 3), np.flatnonzero(expected[:, 0] > 0)):
            np.testing.assert_array_equal(expected[rows], spooled[rows])
    assert not list((tmp_path / "here").iterdir())
