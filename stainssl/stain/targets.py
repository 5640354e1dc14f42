"""Stain targets: the policies that draw them, the choice of candidates, and the target file."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Generator, Tensor

from stainssl.stain.profile import StainProfile

SCHEMA = 1
PER = ("iteration", "image")


class TargetPolicy(Protocol):
    """Policy that draws the stain target(s) of a training step."""

    def draw(
        self,
        profiles: StainProfile,
        generator: Generator,
        sites: Sequence[str] | None = None,
    ) -> StainProfile:
        """Draw the target of a batch.

        Args:
            profiles: profiles of the batch's B images.
            generator: CPU generator, the only source of randomness.
            sites: sites of the batch's images; used by the policy `site` only.

        Returns:
            One profile (per iteration) or B profiles (per image), valid and finite, on the
            device of `profiles`.
        """
        ...


@dataclass(frozen=True)
class BatchTarget:
    """Policy `batch`: the profile of a random image of the batch, as in Tiard et al. 2022.

    Attributes:
        fallback: one valid profile, for batches without a valid one.
        per: one target per `iteration` or per `image`.
    """

    fallback: StainProfile
    per: str = "iteration"

    def draw(
        self,
        profiles: StainProfile,
        generator: Generator,
        sites: Sequence[str] | None = None,
    ) -> StainProfile:
        """Draw a valid profile for the batch, or one per image (an image may draw its own)."""
        device, size = profiles.valid.device, len(profiles)
        rows = size if self.per == "image" else 1
        # argmax of random scores, invalid profiles one lower: no index is copied to the host.
        score = torch.rand(rows, size, generator=generator).to(device) + profiles.valid.float()
        drawn = profiles[score.argmax(1)].where_valid(self.fallback)
        return drawn if self.per == "image" else drawn[0]


@dataclass(frozen=True)
class PoolTarget:
    """Policies `cohort`, `medoid`, `spread`, `fixed`: one of the candidates, all equally likely.

    Attributes:
        candidates: K valid profiles.
        per: one target per `iteration` or per `image`.
    """

    candidates: StainProfile
    per: str = "iteration"

    def draw(
        self,
        profiles: StainProfile,
        generator: Generator,
        sites: Sequence[str] | None = None,
    ) -> StainProfile:
        """Draw a random candidate for the batch, or one per image."""
        rows = len(profiles) if self.per == "image" else 1
        drawn = torch.randint(len(self.candidates), (rows,), generator=generator)
        chosen = self.candidates[drawn].to(profiles.valid.device)
        return chosen if self.per == "image" else chosen[0]


@dataclass(frozen=True)
class SiteTarget:
    """Policy `site`: a candidate of another site than the image's own; sites are equally likely.

    Attributes:
        candidates: K valid profiles.
        sites: sites of the candidates, K names.
        per: `iteration` draws one candidate for the batch, from any site except the most frequent
            one of the batch; `image` draws one per image, from any site except the image's own.
    """

    candidates: StainProfile
    sites: tuple[str, ...]
    per: str = "iteration"

    def draw(
        self,
        profiles: StainProfile,
        generator: Generator,
        sites: Sequence[str] | None = None,
    ) -> StainProfile:
        """Draw candidates of other sites, or of any site if all are of the same one."""
        own = list(sites) if sites is not None else [""] * len(profiles)
        if self.per == "iteration":
            own = [max(sorted(set(own)), key=own.count)]
        score = torch.rand(len(own), len(self.sites), generator=generator)
        drawn = (self._weights(own).log() - (-score.log()).log()).argmax(1)  # Gumbel-max sampling
        chosen = self.candidates[drawn].to(profiles.valid.device)
        return chosen if self.per == "image" else chosen[0]

    def _weights(self, own: Sequence[str]) -> Tensor:
        """(B, K) weight of each candidate: equal totals for all sites, 0 for an image's own."""
        share = torch.tensor([1 / self.sites.count(site) for site in self.sites])
        other = torch.tensor([[site != mine for site in self.sites] for mine in own])
        other = other | ~other.any(1, keepdim=True)
        return share * other


def load(content: Path | str | Mapping[str, Any]) -> TargetPolicy:
    """Load the policy described by a target file.

    Args:
        content: path of a `target.json`, or its parsed content.

    Raises:
        ValueError: another schema, or an unknown policy or `per`.
    """
    data, where = _read(content)
    if data.get("schema") != SCHEMA:
        raise ValueError(
            f"{where}: expected a stain target of schema {SCHEMA}, found schema "
            f"{data.get('schema', '?')}. Delete it and run `target` again."
        )
    if data["policy"] not in POLICIES or data["per"] not in PER:
        raise ValueError(
            f"{where}: unknown policy {data['policy']!r} per {data['per']!r}; policies: "
            f"{', '.join(POLICIES)}; per: {', '.join(PER)}."
        )
    return POLICIES[data["policy"]](data)


def _read(content: Path | str | Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    if isinstance(content, Mapping):
        return content, "target"
    return json.loads(Path(content).read_text(encoding="utf-8")), str(content)


def _batch(data: Mapping[str, Any]) -> BatchTarget:
    return BatchTarget(profile_from_json(data["fallback"]), data["per"])


def _pool(data: Mapping[str, Any]) -> PoolTarget:
    return PoolTarget(_candidates(data), data["per"])


def _site(data: Mapping[str, Any]) -> SiteTarget:
    sites = tuple(c["site"] for c in data.get("candidates", [])) or ("",)
    return SiteTarget(_candidates(data), sites, data["per"])


def _candidates(data: Mapping[str, Any]) -> StainProfile:
    """Profiles of a target's candidates, or its fallback if it has none."""
    found = [profile_from_json(c["profile"]) for c in data.get("candidates", [])]
    return StainProfile.cat(found or [profile_from_json(data["fallback"])])


POLICIES: dict[str, Callable[[Mapping[str, Any]], TargetPolicy]] = {
    "batch": _batch,
    "cohort": _pool,
    "site": _site,
    "medoid": _pool,
    "spread": _pool,
    "fixed": _pool,
}


def profile_to_json(profile: StainProfile) -> dict[str, Any]:
    """Convert a profile to JSON types; the inverse of `profile_from_json`."""
    arrays = {name: value.tolist() for name, value in profile.to_arrays().items()}
    return {"method": profile.method, **arrays}


def profile_from_json(data: Mapping[str, Any]) -> StainProfile:
    """Create a profile from the output of `profile_to_json`."""
    return StainProfile.from_arrays(data["method"], data)


def medoid(points: Tensor) -> int:
    """Index of the medoid of (N, D) points: the point with the least sum of distances."""
    total = torch.cat([torch.cdist(block, points).sum(1) for block in points.split(1024)])
    return int(total.argmin())


def farthest_points(points: Tensor, count: int) -> list[int]:
    """Indices of `count` points that cover (N, D) points, starting with the medoid.

    Farthest-first traversal (Gonzalez 1985): the largest distance to a chosen point is at most
    twice the optimum. Fewer are returned if there are fewer distinct points.
    """
    chosen = [medoid(points)]
    distance = torch.full((len(points),), torch.inf)
    while len(chosen) < count:
        distance = torch.minimum(distance, (points - points[chosen[-1]]).norm(dim=1))
        if distance.max() <= 0:
            break
        chosen.append(int(distance.argmax()))
    return chosen


def nearest_distance(points: Tensor, chosen: Tensor) -> Tensor:
    """(N,) distance of each of (N, D) points to the nearest of (K, D) chosen points."""
    exact = "donot_use_mm_for_euclid_dist"  # by products, a point may be 0.04 from itself
    return torch.cat(
        [torch.cdist(b, chosen, compute_mode=exact).amin(1) for b in points.split(256)]
    )


@dataclass(frozen=True)
class Pool:
    """Summary of the stain profiles of any number of tiles: sums by site, and a random sample.

    Pools of disjoint tiles can be merged (`merged`) in any order and grouping with the same
    result, so that a cohort is reduced part by part. The sample consists of the valid tiles with
    the smallest random keys (a bottom-k sketch): a uniform sample without replacement, of bounded
    size.

    Attributes:
        method: estimation method of the profiles.
        tiles, valid: numbers of tiles, and of tiles with a valid profile, by site.
        sums: site → field → float64 sum over the valid profiles.
        sample: field → (n, ...) values of the sampled tiles, in order of `key`.
        site, slide, tile: (n,) site name, slide name and tile number of the sampled tiles.
        key: (n,) float64 random keys in 0–1, ascending.
        limit: largest n.
    """

    method: str
    tiles: dict[str, int]
    valid: dict[str, int]
    sums: dict[str, dict[str, np.ndarray]]
    sample: dict[str, np.ndarray]
    site: np.ndarray
    slide: np.ndarray
    tile: np.ndarray
    key: np.ndarray
    limit: int

    def profiles(self) -> StainProfile:
        """Profiles of the sampled tiles, as a batch."""
        arrays = {**self.sample, "valid": np.ones(len(self.key), bool)}
        return StainProfile.from_arrays(self.method, arrays)

    def site_means(self) -> dict[str, StainProfile]:
        """Mean profile of each site that has a valid tile, sites in alphabetical order."""
        return {
            site: _mean_profile(self.method, self.sums[site], self.valid[site])
            for site in sorted(self.sums)
        }

    def mean(self) -> StainProfile:
        """Mean profile of all valid tiles; without any, the published reference, marked valid."""
        if not self.sums:
            return StainProfile.reference(self.method)
        fields = next(iter(self.sums.values()))
        total = {name: sum(self.sums[s][name] for s in sorted(self.sums)) for name in fields}
        return _mean_profile(self.method, total, sum(self.valid.values()))


def _mean_profile(method: str, sums: Mapping[str, Any], count: int) -> StainProfile:
    arrays = {name: value[None] / count for name, value in sums.items()}
    return StainProfile.from_arrays(method, {**arrays, "valid": [True]}).pooled()


def pool(
    method: str,
    arrays: Mapping[str, np.ndarray],
    *,
    slide: Sequence[str],
    site: Sequence[str],
    row: np.ndarray,
    tile: np.ndarray,
    seed: int,
    limit: int = 20_000,
) -> Pool:
    """Create the pool of the tiles of one part.

    Args:
        method: estimation method of the profiles.
        arrays: field → (N, ...), including `valid`, as returned by `StainProfile.to_arrays`.
        slide: names of the S slides.
        site: sites of the S slides.
        row: (N,) index of each tile's slide.
        tile: (N,) number of each tile within its slide.
        seed: seed of the sample; a tile's key depends only on seed, slide name and tile number.
        limit: largest size of the sample.
    """
    valid = np.asarray(arrays["valid"], bool)
    site_of = np.asarray(site, dtype=object)[row]
    key = _keys(slide, row, tile, seed)
    kept = np.flatnonzero(valid)
    kept = kept[np.argsort(key[kept], kind="stable")[:limit]]
    values = {name: np.asarray(value) for name, value in arrays.items() if name != "valid"}
    inside = {name: (site_of == name) for name in sorted(set(site))}
    return Pool(
        method=method,
        tiles={name: int(rows.sum()) for name, rows in inside.items()},
        valid={name: int((rows & valid).sum()) for name, rows in inside.items()},
        sums={
            name: {f: v[rows & valid].sum(0, dtype=np.float64) for f, v in values.items()}
            for name, rows in inside.items()
            if (rows & valid).any()
        },
        sample={name: value[kept] for name, value in values.items()},
        site=site_of[kept],
        slide=np.asarray(slide, dtype=object)[row[kept]],
        tile=np.asarray(tile)[kept],
        key=key[kept],
        limit=limit,
    )


def _keys(slide: Sequence[str], row: np.ndarray, tile: np.ndarray, seed: int) -> np.ndarray:
    """(N,) uniform keys in 0–1, which do not depend on the part that a tile belongs to."""
    salt = np.array([zlib.crc32(f"{seed}/{name}".encode()) for name in slide], np.uint64)
    mixed = (salt[row] << np.uint64(32)) | np.asarray(tile).astype(np.uint64)
    # Finaliser of splitmix64 (Steele et al. 2014): every input bit affects every output bit.
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return (mixed ^ (mixed >> np.uint64(31))) / 2.0**64


def merged(first: Pool, second: Pool) -> Pool:
    """Merge two pools of disjoint tiles, of the same method and limit."""
    order = np.argsort(np.concatenate([first.key, second.key]), kind="stable")[: first.limit]

    def take(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.concatenate([a, b])[order]

    return Pool(
        method=first.method,
        tiles=_added(first.tiles, second.tiles),
        valid=_added(first.valid, second.valid),
        sums=_added_sums(first.sums, second.sums),
        sample={name: take(first.sample[name], second.sample[name]) for name in first.sample},
        site=take(first.site, second.site),
        slide=take(first.slide, second.slide),
        tile=take(first.tile, second.tile),
        key=take(first.key, second.key),
        limit=first.limit,
    )


def _added(a: Mapping[str, int], b: Mapping[str, int]) -> dict[str, int]:
    return {name: a.get(name, 0) + b.get(name, 0) for name in sorted({*a, *b})}


def _added_sums(
    a: Mapping[str, dict[str, np.ndarray]], b: Mapping[str, dict[str, np.ndarray]]
) -> dict[str, dict[str, np.ndarray]]:
    total = {**a, **b}
    for site in {*a} & {*b}:
        total[site] = {name: a[site][name] + b[site][name] for name in a[site]}
    return total


def choose(
    pool: Pool, policy: str, *, by_site: bool = False, count: int = 8, drawn: int = 256
) -> list[int]:
    """Choose the candidate tiles of a policy from the sample of a pool.

    Args:
        pool: pool of the training tiles.
        policy: `batch` has no candidates; `cohort` takes random tiles; `site` random tiles, the
            same number from each site; `medoid` the medoid of all tiles; `spread` tiles that
            cover the stain space (`farthest_points`).
        by_site: whether `medoid` takes the medoid of each site.
        count: number of candidates of `spread`.
        drawn: number of candidates of `cohort`, and of `site` over all sites.

    Returns:
        Indices into the pool's sample; empty if no tile is valid.

    Raises:
        ValueError: a policy that does not choose from a pool.
    """
    if policy == "batch" or not len(pool.key):
        return []
    if policy == "cohort":
        return list(range(min(drawn, len(pool.key))))  # the sample is in random order
    if policy == "site":
        return _each_site(pool, drawn)
    points = pool.profiles().coordinates()
    if policy == "medoid":
        groups = _rows_by_site(pool) if by_site else [torch.arange(len(points))]
        return [int(rows[medoid(points[rows])]) for rows in groups]
    if policy == "spread":
        return farthest_points(points, count)
    raise ValueError(f"Policy {policy!r} does not choose from a pool of tiles.")


def _each_site(pool: Pool, drawn: int) -> list[int]:
    groups = _rows_by_site(pool)
    share = max(1, drawn // len(groups))
    return [int(i) for rows in groups for i in rows[:share]]


def _rows_by_site(pool: Pool) -> list[Tensor]:
    """Rows of the sample by site, sites in alphabetical order."""
    return [torch.from_numpy(np.flatnonzero(pool.site == s)) for s in sorted(set(pool.site))]
