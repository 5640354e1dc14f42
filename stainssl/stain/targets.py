"""Which profile images are normalized to: policies, their candidates, and the file they live in."""

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
    """Draws the target(s) of one training step."""

    def draw(
        self,
        profiles: StainProfile,
        generator: Generator,
        sites: Sequence[str] | None = None,
    ) -> StainProfile:
        """The target of a batch.

        Args:
            profiles: those of the batch's B images.
            generator: of a CPU; the only source of chance.
            sites: of the batch's images; only the policy `site` looks at them.

        Returns:
            One profile (per iteration) or B profiles (per image), valid and finite, on the
            device of `profiles`.
        """
        ...


@dataclass(frozen=True)
class BatchTarget:
    """A random image of the batch, as in Tiard et al. 2022.

    Attributes:
        fallback: one valid profile, for batches without a valid one.
        per: `iteration` or `image`.
    """

    fallback: StainProfile
    per: str = "iteration"

    def draw(
        self,
        profiles: StainProfile,
        generator: Generator,
        sites: Sequence[str] | None = None,
    ) -> StainProfile:
        """One valid image's profile for all, or one an image (an image may draw itself)."""
        device, size = profiles.valid.device, len(profiles)
        rows = size if self.per == "image" else 1
        # The best score wins: no index leaves the device, so nothing waits for it.
        score = torch.rand(rows, size, generator=generator).to(device) + profiles.valid.float()
        drawn = profiles[score.argmax(1)].where_valid(self.fallback)
        return drawn if self.per == "image" else drawn[0]


@dataclass(frozen=True)
class PoolTarget:
    """One of given candidates, each as likely: `cohort`, `medoid`, `spread`, `fixed`.

    Attributes:
        candidates: K valid profiles.
        per: `iteration` or `image`.
    """

    candidates: StainProfile
    per: str = "iteration"

    def draw(
        self,
        profiles: StainProfile,
        generator: Generator,
        sites: Sequence[str] | None = None,
    ) -> StainProfile:
        """A random candidate for all, or one an image."""
        rows = len(profiles) if self.per == "image" else 1
        drawn = torch.randint(len(self.candidates), (rows,), generator=generator)
        chosen = self.candidates[drawn].to(profiles.valid.device)
        return chosen if self.per == "image" else chosen[0]


@dataclass(frozen=True)
class SiteTarget:
    """A candidate of another site than the image's own; every site is as likely.

    Attributes:
        candidates: K valid profiles.
        sites: their sites, K names.
        per: `iteration` draws one candidate for all, of a site that is not that of most images
            of the batch; `image` one an image, never of its own site.
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
        """A candidate of another site; of any site where there is no other."""
        own = list(sites) if sites is not None else [""] * len(profiles)
        if self.per == "iteration":
            own = [max(sorted(set(own)), key=own.count)]
        score = torch.rand(len(own), len(self.sites), generator=generator)
        drawn = (self._weights(own).log() - (-score.log()).log()).argmax(1)  # Gumbel: by weight
        chosen = self.candidates[drawn].to(profiles.valid.device)
        return chosen if self.per == "image" else chosen[0]

    def _weights(self, own: Sequence[str]) -> Tensor:
        """(B, K) chance of each candidate: equal sites, the own one excluded."""
        share = torch.tensor([1 / self.sites.count(site) for site in self.sites])
        other = torch.tensor([[site != mine for site in self.sites] for mine in own])
        other = other | ~other.any(1, keepdim=True)
        return share * other


def load(content: Path | str | Mapping[str, Any]) -> TargetPolicy:
    """The policy that a target file describes.

    Args:
        content: path of a `target.json`, or what it holds.

    Raises:
        ValueError: another schema, an unknown policy or `per`, or no candidates where the policy
            needs some; the message names the file and what to do.
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
    """Profiles of a target's candidates; the pooled fallback where it has none."""
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
    """A profile in JSON's types; `profile_from_json` reads it back."""
    arrays = {name: value.tolist() for name, value in profile.to_arrays().items()}
    return {"method": profile.method, **arrays}


def profile_from_json(data: Mapping[str, Any]) -> StainProfile:
    """The profile that `profile_to_json` wrote."""
    return StainProfile.from_arrays(data["method"], data)


def medoid(points: Tensor) -> int:
    """Index of the point with the least summed distance to all (N, D) points."""
    total = torch.cat([torch.cdist(block, points).sum(1) for block in points.split(1024)])
    return int(total.argmin())


def farthest_points(points: Tensor, count: int) -> list[int]:
    """Indices of `count` points that cover (N, D) points: the medoid, then farthest first.

    Gonzalez 1985: the largest distance to a chosen point is at most twice the least possible.
    Fewer where there are fewer distinct points.
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
    """(N,) distance of each of (N, D) points to the nearest of (K, D) chosen ones."""
    exact = "donot_use_mm_for_euclid_dist"  # the other mode gives a point 0.04 from itself
    return torch.cat(
        [torch.cdist(b, chosen, compute_mode=exact).amin(1) for b in points.split(256)]
    )


@dataclass(frozen=True)
class Pool:
    """What is kept of a pool of tiles of any size: sums by site, and a random sample.

    Two pools of disjoint tiles add up (`merged`), in any order and grouping, to the same result,
    so a cohort is reduced part by part. The sample holds the tiles with the smallest random keys
    (a bottom-k sketch): a fair sample without replacement of the whole, of bounded size.

    Attributes:
        method: of the profiles.
        tiles, valid: counts by site.
        sums: site → field → float64 sum over the valid profiles.
        sample: field → (n, ...) of sampled valid tiles, in order of `key`.
        site, slide, tile: (n,) of the sample; names, names, numbers.
        key: (n,) float64 random keys, ascending.
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
        """The sample as a batch of profiles."""
        arrays = {**self.sample, "valid": np.ones(len(self.key), bool)}
        return StainProfile.from_arrays(self.method, arrays)

    def site_means(self) -> dict[str, StainProfile]:
        """The mean profile of each site with a valid tile, sites in order of name."""
        return {
            site: _mean_profile(self.method, self.sums[site], self.valid[site])
            for site in sorted(self.sums)
        }

    def mean(self) -> StainProfile:
        """The mean profile of all valid tiles; the published reference, valid, where none is."""
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
    """The pool of one part's tiles.

    Args:
        method: of the profiles.
        arrays: field → (N, ...), with `valid`, as a profile's `to_arrays` gives.
        slide: names of S slides.
        site: their sites, S names.
        row: (N,) index of each tile's slide.
        tile: (N,) number of each tile within its slide.
        seed: of the sample; a tile's key depends on seed, slide and tile number alone.
        limit: largest sample.
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
    """(N,) uniform keys, the same for a tile whatever part it comes with."""
    salt = np.array([zlib.crc32(f"{seed}/{name}".encode()) for name in slide], np.uint64)
    mixed = (salt[row] << np.uint64(32)) | np.asarray(tile).astype(np.uint64)
    # The finaliser of splitmix64 (Steele et al. 2014): every input bit reaches every output bit.
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return (mixed ^ (mixed >> np.uint64(31))) / 2.0**64


def merged(first: Pool, second: Pool) -> Pool:
    """The pool of the tiles of two pools of one method and limit."""
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
    """Which tiles of a pool's sample are a policy's candidates.

    Args:
        pool: of the training part.
        policy: `batch` needs none; `cohort` takes random tiles; `site` random tiles, as many of
            each site; `medoid` the tile nearest to all others; `spread` tiles that cover the
            stain space, farthest first.
        by_site: `medoid` takes one of each site, the nearest to all others of its site.
        count: candidates of `spread`.
        drawn: candidates of `cohort`, and of `site` over all sites.

    Returns:
        Indices into the pool's sample; empty where no tile of the pool is valid.

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
    """Rows of the sample, a tensor a site, sites in order of name."""
    return [torch.from_numpy(np.flatnonzero(pool.site == s)) for s in sorted(set(pool.site))]
