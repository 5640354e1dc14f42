"""What a spool keeps it gives back, and it leaves no file."""

from __future__ import annotations

import numpy as np

from stainssl.stores.spool import Spool


def test_a_spool_gives_back_what_it_keeps_and_leaves_no_file(tmp_path, rng):
    spool = Spool(tmp_path / "here")
    kept = [rng.normal(size=(n, 5)).astype(np.float16) for n in (7, 0, 1, 300)]
    found = [spool.keep(features) for features in kept]
    for ours, theirs in zip(kept, found, strict=True):
        assert len(theirs) == len(ours)
        assert theirs.shape == ours.shape
        for rows in (slice(None), slice(1, 200, 3), np.flatnonzero(ours[:, 0] > 0)):
            np.testing.assert_array_equal(ours[rows], theirs[rows])
    assert not list((tmp_path / "here").iterdir())
