# mypy: disallow-untyped-defs=False
"""Pixel loops of `numba_backend`, compiled by numba.

They are fast because uint8 pixels are looked up in tables; because logarithm, exponential and
powers are polynomials over blocks that fit in the L1 cache, in loops that the compiler vectorises;
and because no array of the size of the batch is allocated except the result.

Every kernel processes images `first` to `last` (exclusive) of `pixels`, (B, 3, P) uint8 or float32
in [0, 1]. `mask` is (B, P) uint8, 1 on tissue, or (B, 0) without a mask. `table` is (256,) float32,
optical density or linear light by grey level. `settings` is (4,) float32: the optical density of
grey level 1 − offset, optical density per unit of natural logarithm, offset, and the optical
density of black.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import overload

from stainssl.stain.lab import (
    CUBE_KNEE,
    CUBE_SLOPE,
    GAMMA_KNEE,
    LAB,
    LAB_OFFSET,
    LINEAR_KNEE,
    ROOT_KNEE,
    ROOT_SLOPE,
    XYZ,
)
from stainssl.stain.torch_backend import BINS

f32 = np.float32
BLOCK = 1024  # pixels processed at once: 4 kB per array
LANES = 64  # values compared at once
# -ffast-math without the assumption that there are no NaN or infinities: float pixels may be NaN.
FAST = {"reassoc", "contract", "arcp", "nsz", "afn"}
MANTISSA, ONE_BITS = np.int32(0x7FFFFF), np.int32(0x3F800000)
THIRD_OF_ONE = np.int32(0x2A5137A0)  # two thirds of the exponent's bias, tuned for least error
LN2 = f32(math.log(2))
_INVERSE_XYZ = np.linalg.inv(np.array(XYZ)).astype(f32)
_XYZ32, _LAB32, _LAB_OFFSET32 = (np.array(a, f32) for a in (XYZ, LAB, LAB_OFFSET))
_CUBE_KNEE, _CUBE_SLOPE = f32(CUBE_KNEE), f32(CUBE_SLOPE)
_ROOT_KNEE, _ROOT_SLOPE = f32(ROOT_KNEE), f32(ROOT_SLOPE)
_GAMMA_KNEE, _LINEAR_KNEE = f32(GAMMA_KNEE), f32(LINEAR_KNEE)


def _jit(function: Callable[..., Any]) -> Any:
    options: Any = {"fastmath": FAST, "nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither this folder nor the user's cache is writable
        return numba.njit(**options)(function)


@_jit
def _log(x, bits, whole):
    """Natural logarithm of a block in place; `bits` is the same memory as int32."""
    for p in range(x.size):
        whole[p] = f32((bits[p] >> 23) - 127) * LN2
        bits[p] = (bits[p] & MANTISSA) | ONE_BITS
    for p in range(x.size):
        # ln m = 2 artanh((m − 1) / (m + 1)) for m in [1, 2); error of the series below 1e-8.
        s = (x[p] - f32(1)) / (x[p] + f32(1))
        t = s * s
        tail = f32(1 / 9) + t * (f32(1 / 11) + t * f32(1 / 13))
        series = f32(1) + t * (f32(1 / 3) + t * (f32(1 / 5) + t * (f32(1 / 7) + t * tail)))
        x[p] = whole[p] + f32(2) * s * series


@_jit
def _exp(x):
    """e^x, with x clamped to ±16: the series of e^(x/256), squared eight times."""
    s = min(max(x, f32(-16)), f32(16)) * f32(1 / 256)
    y = f32(1) + s * (f32(1) + s * (f32(1 / 2) + s * (f32(1 / 6) + s * f32(1 / 24))))
    y *= y
    y *= y
    y *= y
    y *= y
    y *= y
    y *= y
    y *= y
    y *= y
    return y


@_jit
def _power(x, bits, whole, exponent):
    """Raise the positive numbers of a block to a power, in place."""
    _log(x, bits, whole)
    for p in range(x.size):
        x[p] = _exp(exponent * x[p])


@_jit
def _cube_root(x, bits, root, root_bits):
    """Write the cube roots of a block to `root`, with a relative error of 3e-5.

    A third of the float's bits is an estimate within 3 %, refined by one step of Halley's method.
    The result is arbitrary for numbers that are not positive.
    """
    for p in range(x.size):
        root_bits[p] = np.int32(f32(bits[p]) * f32(1 / 3)) + THIRD_OF_ONE
    for p in range(x.size):
        y = root[p]
        cube = y * y * y
        root[p] = y * (cube + f32(2) * x[p]) / (f32(2) * cube + x[p])


@_jit
def _unit(value):
    """Clamp a float pixel to [0, 1]; NaN is 0, as in `torch_backend`."""
    value = value if value > f32(0) else f32(0)
    return value if value < f32(1) else f32(1)


def _load_density(pixels, table, settings, x, bits, whole):
    """Write the optical densities of a block of pixels to `x`."""
    raise NotImplementedError("compiled code alone calls this")


@overload(_load_density, inline="never", jit_options={"fastmath": FAST, "error_model": "numpy"})
def _load_density_of(pixels, table, settings, x, bits, whole):
    if pixels.dtype == types.uint8:

        def from_table(pixels, table, settings, x, bits, whole):
            for p in range(x.size):
                x[p] = table[pixels[p]]

        return from_table

    def computed(pixels, table, settings, x, bits, whole):
        lift, per_log, offset = settings[0], settings[1], settings[2]
        for p in range(x.size):
            x[p] = _unit(pixels[p]) * f32(255) + offset
        _log(x, bits, whole)
        for p in range(x.size):
            x[p] = lift - per_log * x[p]

    return computed


def _load_linear(pixels, table, x, bits, whole, line):
    """Write the linear light, 0–1, of a block of sRGB pixels to `x`."""
    raise NotImplementedError("compiled code alone calls this")


@overload(_load_linear, inline="never", jit_options={"fastmath": FAST, "error_model": "numpy"})
def _load_linear_of(pixels, table, x, bits, whole, line):
    if pixels.dtype == types.uint8:

        def from_table(pixels, table, x, bits, whole, line):
            for p in range(x.size):
                x[p] = table[pixels[p]]

        return from_table

    def computed(pixels, table, x, bits, whole, line):
        for p in range(x.size):
            value = _unit(pixels[p])
            line[p] = (min(value, _GAMMA_KNEE) - _GAMMA_KNEE) / f32(12.92)
            x[p] = (max(value, _GAMMA_KNEE) + f32(0.055)) / f32(1.055)
        _power(x, bits, whole, f32(2.4))
        for p in range(x.size):
            x[p] += line[p]

    return computed


def _store(x, out):
    """Store grey levels, clamped to 0–255: rounded to uint8, or as float divided by 255."""
    raise NotImplementedError("compiled code alone calls this")


@overload(_store, inline="never", jit_options={"fastmath": FAST, "error_model": "numpy"})
def _store_as(x, out):
    if out.dtype == types.uint8:

        def rounded(x, out):
            for p in range(x.size):
                out[p] = np.uint8(np.int32(min(max(x[p], f32(0)), f32(255)) + f32(0.5)))

        return rounded

    def scaled(x, out):
        for p in range(x.size):
            out[p] = min(max(x[p], f32(0)), f32(255)) * f32(1 / 255)

    return scaled


@_jit
def map_density(first, last, pixels, table, settings, matrix, shift, io, offset, out):
    """Map the optical density of images by `matrix` and `shift`; writes images to `out`."""
    total = pixels.shape[2]
    work = np.empty((5, BLOCK), f32)
    bits = work.view(np.int32)
    for i in range(first, last):
        for p in range(0, total, BLOCK):
            n = min(BLOCK, total - p)
            for c in range(3):
                block = pixels[i, c, p : p + n]
                _load_density(block, table, settings, work[c, :n], bits[c, :n], work[3, :n])
            for c in range(3):
                _mixed(work, 0, matrix[i, c], shift[i, c], work[4, :n])
                _transmitted(work[4, :n], io, offset)
                _store(work[4, :n], out[i, c, p : p + n])


@_jit
def _mixed(work, first, weights, shift, out):
    """Apply one row of a 3×3 map to a block whose channels are three rows of `work`."""
    n = out.size  # row by row: numba does not know the memory layout of a slice of several rows
    a, b, c = work[first, :n], work[first + 1, :n], work[first + 2, :n]
    u, v, w = weights[0], weights[1], weights[2]
    for p in range(out.size):
        out[p] = u * a[p] + v * b[p] + w * c[p] + shift


@_jit
def _transmitted(x, io, offset):
    for p in range(x.size):
        x[p] = io * _exp(-x[p]) - offset


@_jit
def moments(first, last, pixels, mask, table, settings, beta, sums):
    """Per image: counts of tissue and clipped pixels, sums and products of optical densities."""
    total = pixels.shape[2]
    work = np.empty((4, BLOCK), f32)
    bits = work.view(np.int32)
    weight = np.empty(BLOCK, f32)
    black = settings[3]
    for i in range(first, last):
        for p in range(0, total, BLOCK):
            n = min(BLOCK, total - p)
            for c in range(3):
                block = pixels[i, c, p : p + n]
                _load_density(block, table, settings, work[c, :n], bits[c, :n], work[3, :n])
            _weigh(work, mask[i, p : p + n], beta, weight[:n])
            _add_moments(work, weight[:n], black, sums[i])


@_jit
def _weigh(work, mask, beta, weight):
    """Weight 1 for tissue: by the mask if there is one, otherwise by optical density."""
    n = weight.size
    r, g, b = work[0, :n], work[1, :n], work[2, :n]
    if mask.size:
        for p in range(weight.size):
            weight[p] = f32(mask[p])
    else:
        for p in range(weight.size):
            weight[p] = f32(min(r[p], g[p], b[p]) >= beta)


@_jit
def _add_moments(work, weight, black, sums):
    n = weight.size
    r, g, b = work[0, :n], work[1, :n], work[2, :n]
    count, clipped = 0.0, 0.0
    sr, sg, sb = 0.0, 0.0, 0.0
    rr, rg, rb, gg, gb, bb = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for p in range(weight.size):
        w = np.float64(weight[p])
        x, y, z = w * r[p], w * g[p], w * b[p]
        count += w
        clipped += w * np.float64(max(r[p], g[p], b[p]) >= black)
        sr += x
        sg += y
        sb += z
        rr += x * r[p]
        rg += x * g[p]
        rb += x * b[p]
        gg += y * g[p]
        gb += y * b[p]
        bb += z * b[p]
    for k, value in enumerate((count, clipped, sr, sg, sb, rr, rg, rb, gg, gb, bb)):
        sums[k] += value


@_jit
def angles(first, last, pixels, mask, table, settings, beta, basis, shares, out):
    """Quantiles of the tissue's angles, computed on a monotonic substitute for the arctangent."""
    total = pixels.shape[2]
    work = np.empty((6, BLOCK), f32)
    bits = work.view(np.int32)
    values, counts = np.empty(total, f32), np.empty(BINS, np.int32)
    for i in range(first, last):
        kept = 0
        for p in range(0, total, BLOCK):
            n = min(BLOCK, total - p)
            for c in range(3):
                block = pixels[i, c, p : p + n]
                _load_density(block, table, settings, work[c, :n], bits[c, :n], work[3, :n])
            _weigh(work, mask[i, p : p + n], beta, work[5, :n])
            _mixed(work, 0, basis[i, 0], f32(0), work[3, :n])
            _mixed(work, 0, basis[i, 1], f32(0), work[4, :n])
            _diamond(work[3, :n], work[4, :n])
            for q in range(n):
                values[kept] = work[4, q]
                kept += np.int64(work[5, q])  # type: ignore[assignment]
        _quantiles(values[:kept], counts, shares, out[i])
        for k in range(shares.size):
            d = out[i, k]
            out[i, k] = math.atan2(math.copysign(min(abs(d), 2 - abs(d)), d), 1 - abs(d))


@_jit
def _diamond(x, y):
    """Replace y by the diamond angle of (x, y), in −2–2, which is monotonic in atan2(y, x)."""
    for p in range(x.size):
        length = abs(x[p]) + abs(y[p])
        d = y[p] / max(length, f32(1e-12))
        turned = f32(2) - d if y[p] >= f32(0) else f32(-2) - d
        y[p] = d if x[p] >= f32(0) else turned


@_jit
def _quantiles(values, counts, shares, out):
    """See `torch_backend.masked_quantile`; for one row."""
    low, high = _range(values)
    width = max((high - low) / f32(BINS), f32(1e-12))
    _count(values, low, f32(1) / width, counts)
    for k in range(shares.size):
        wanted = values.size * shares[k]
        before, bin_ = 0, 0
        while bin_ < BINS - 1 and before + counts[bin_] < wanted:
            before += counts[bin_]
            bin_ += 1
        out[k] = low + width * (bin_ + min((wanted - before) / max(counts[bin_], 1), 1.0))


@_jit
def _range(values):
    """Minimum and maximum (0 and 0 without values), by lanes, which the compiler vectorises."""
    if not values.size:
        return f32(0), f32(0)
    low, high = np.full(LANES, values[0]), np.full(LANES, values[0])
    for p in range(0, values.size, LANES):
        _widen(values[p : p + LANES], low, high)
    return low.min(), high.max()


@_jit
def _widen(values, low, high):
    for k in range(values.size):
        low[k], high[k] = min(low[k], values[k]), max(high[k], values[k])


@_jit
def _count(values, low, per_width, counts):
    """Histogram of the values; bins are computed block by block, a loop that is vectorised."""
    counts[:] = 0
    found = np.empty(BLOCK, np.int32)
    for p in range(0, values.size, BLOCK):
        n = min(BLOCK, values.size - p)
        _find_bins(values[p : p + n], low, per_width, found[:n])
        for k in range(n):
            counts[found[k]] += 1


@_jit
def _find_bins(values, low, per_width, found):
    for k in range(values.size):
        place = np.int32((values[k] - low) * per_width)
        found[k] = min(max(place, np.int32(0)), np.int32(BINS - 1))


@_jit
def concentrations(first, last, pixels, table, settings, unmix, shares, out):
    """Write quantiles of the concentrations of both stains to `out`."""
    total = pixels.shape[2]
    work = np.empty((4, BLOCK), f32)
    bits = work.view(np.int32)
    values, counts = np.empty((2, total), f32), np.empty(BINS, np.int32)
    for i in range(first, last):
        for p in range(0, total, BLOCK):
            n = min(BLOCK, total - p)
            for c in range(3):
                block = pixels[i, c, p : p + n]
                _load_density(block, table, settings, work[c, :n], bits[c, :n], work[3, :n])
            for stain in range(2):
                _mixed(work, 0, unmix[i, stain], f32(0), values[stain, p : p + n])
        for stain in range(2):
            _quantiles(values[stain], counts, shares, out[i, stain : stain + 1])


@_jit
def _lab_curve(x, root):
    """Apply the LAB curve in place: `root` above the knee, a straight line below."""
    for p in range(x.size):
        line = _ROOT_KNEE + (x[p] - _CUBE_KNEE) * _CUBE_SLOPE
        x[p] = root[p] if x[p] > _CUBE_KNEE else line


@_jit
def _to_lab_roots(pixels, start, n, table, work, bits):
    """Write fx, fy, fz, in which L, a, b are linear, of n pixels to work[3:6]."""
    for c in range(3):
        block = pixels[c, start : start + n]
        _load_linear(block, table, work[c, :n], bits[c, :n], work[6, :n], work[7, :n])
    for c in range(3):
        x = work[3 + c, :n]
        _mixed(work, 0, _XYZ32[c], f32(0), x)
        _cube_root(x, bits[3 + c, :n], work[6, :n], bits[6, :n])
        _lab_curve(x, work[6, :n])


@_jit
def lab_moments(first, last, pixels, mask, table, brightest, sums):
    """Per image: counts of tissue and clipped pixels, sums and sums of squares of L, a, b."""
    total = pixels.shape[2]
    work = np.empty((8, BLOCK), f32)
    bits = work.view(np.int32)
    weight = np.empty(BLOCK, f32)
    for i in range(first, last):
        for p in range(0, total, BLOCK):
            n = min(BLOCK, total - p)
            _to_lab_roots(pixels[i], p, n, table, work, bits)
            _weigh_grey(pixels[i], p, mask[i, p : p + n], brightest, weight[:n])
            _add_counts(pixels[i], p, weight[:n], sums[i])
            for c in range(3):
                _mixed(work, 3, _LAB32[c], _LAB_OFFSET32[c], work[6, :n])
                _add_squares(work[6, :n], weight[:n], sums[i], 2 + c)


@_jit
def _weigh_grey(pixels, start, mask, brightest, weight):
    """Weight 1 for tissue: by the mask if there is one, otherwise if no channel is too bright."""
    stop = start + weight.size
    r, g, b = pixels[0, start:stop], pixels[1, start:stop], pixels[2, start:stop]
    if mask.size:
        for p in range(weight.size):
            weight[p] = f32(mask[p])
    else:
        for p in range(weight.size):
            # `not >` instead of `<=`: NaN counts as black, and is tissue.
            weight[p] = f32(not max(f32(r[p]), f32(g[p]), f32(b[p])) > brightest)


@_jit
def _add_counts(pixels, start, weight, sums):
    stop = start + weight.size
    r, g, b = pixels[0, start:stop], pixels[1, start:stop], pixels[2, start:stop]
    count, clipped = f32(0), f32(0)
    for p in range(weight.size):
        count += weight[p]
        clipped += weight[p] * f32(not min(f32(r[p]), f32(g[p]), f32(b[p])) > f32(0))
    sums[0] += count
    sums[1] += clipped


@_jit
def _add_squares(x, weight, sums, place):
    total, squares = f32(0), f32(0)
    for p in range(x.size):
        value = weight[p] * x[p]
        total += value
        squares += value * x[p]
    sums[place] += total
    sums[place + 3] += squares


@_jit
def map_lab(first, last, pixels, table, matrix, shift, out):
    """Map fx, fy, fz, in which L, a, b are linear, by `matrix` and `shift`; writes to `out`."""
    total = pixels.shape[2]
    work = np.empty((8, BLOCK), f32)
    bits = work.view(np.int32)
    for i in range(first, last):
        for p in range(0, total, BLOCK):
            n = min(BLOCK, total - p)
            _to_lab_roots(pixels[i], p, n, table, work, bits)
            for c in range(3):
                _mixed(work, 3, matrix[i, c], shift[i, c], work[c, :n])
                _cubed(work[c, :n])
            for c in range(3):
                _mixed(work, 0, _INVERSE_XYZ[c], f32(0), work[3, :n])
                _encode(work[3, :n], bits[3, :n], work[6, :n], bits[6, :n])
                _store(work[3, :n], out[i, c, p : p + n])


@_jit
def _cubed(x):
    for p in range(x.size):
        high = max(x[p], _ROOT_KNEE)
        x[p] = high * high * high + (min(x[p], _ROOT_KNEE) - _ROOT_KNEE) * _ROOT_SLOPE


@_jit
def _encode(x, bits, root, root_bits):
    """Convert linear light to grey levels in place; x^(1/2.4) is x^(1/3) · x^(1/12)."""
    _cube_root(x, bits, root, root_bits)
    for p in range(x.size):
        high = f32(1.055 * 255) * root[p] * np.sqrt(np.sqrt(root[p])) - f32(0.055 * 255)
        x[p] = high if x[p] > _LINEAR_KNEE else x[p] * f32(12.92 * 255)


@_jit
def sparse(first, last, pixels, mask, table, settings, beta, penalty, rounds, matrix):
    """See `torch_backend.Sample.sparse_vectors`; updates `matrix` in place."""
    total = pixels.shape[2]
    work = np.empty((5, BLOCK), f32)
    bits = work.view(np.int32)
    od, weight = np.empty((3, total), f32), np.empty(total, f32)
    for i in range(first, last):
        for p in range(0, total, BLOCK):
            n = min(BLOCK, total - p)
            for c in range(3):
                block = pixels[i, c, p : p + n]
                _load_density(block, table, settings, work[c, :n], bits[c, :n], work[3, :n])
                od[c, p : p + n] = work[c, :n]
            _weigh(work, mask[i, p : p + n], beta, weight[p : p + n])
        for _ in range(rounds):
            gram, cross = _sparse_sums(od, weight, matrix[i], penalty)
            _improve(matrix[i], gram, cross)


@_jit
def _sparse_sums(od, weight, matrix, penalty):
    """Sums over pixels of C·Cᵀ (hh, he, ee) and C·ODᵀ (6 values), C the optimal sparse codes."""
    r, g, b = od[0], od[1], od[2]
    h0, h1, h2 = matrix[0, 0], matrix[0, 1], matrix[0, 2]
    e0, e1, e2 = matrix[1, 0], matrix[1, 1], matrix[1, 2]
    cosine = h0 * e0 + h1 * e1 + h2 * e2
    per_rest = f32(1) / max(f32(1) - cosine * cosine, f32(1e-6))
    hh, he, ee = f32(0), f32(0), f32(0)
    hr, hg, hb = f32(0), f32(0), f32(0)
    er, eg, eb = f32(0), f32(0), f32(0)
    for p in range(weight.size):
        x = h0 * r[p] + h1 * g[p] + h2 * b[p] - penalty
        y = e0 * r[p] + e1 * g[p] + e2 * b[p] - penalty
        both_x, both_y = (x - cosine * y) * per_rest, (y - cosine * x) * per_rest
        u = max(x if both_y < f32(0) else both_x, f32(0)) * weight[p]
        v = max(y if both_x < f32(0) else both_y, f32(0)) * weight[p]
        hh += u * u
        he += u * v
        ee += v * v
        hr += u * r[p]
        hg += u * g[p]
        hb += u * b[p]
        er += v * r[p]
        eg += v * g[p]
        eb += v * b[p]
    return (hh, he, ee), (hr, hg, hb, er, eg, eb)


@_jit
def _improve(matrix, gram, cross):
    """See `torch_backend.improved_vectors`; updates `matrix` in place."""
    for k in range(2):
        a, b = (gram[0], gram[1]) if k == 0 else (gram[1], gram[2])
        own = max(gram[0] if k == 0 else gram[2], f32(1e-9))
        moved = np.empty(3, f32)
        for c in range(3):
            wanted = cross[c] if k == 0 else cross[3 + c]
            fitted = a * matrix[0, c] + b * matrix[1, c]
            moved[c] = max(matrix[k, c] + (wanted - fitted) / own, f32(0))
        length = math.sqrt(moved[0] ** 2 + moved[1] ** 2 + moved[2] ** 2)
        if length > 1e-6:
            for c in range(3):
                matrix[k, c] = moved[c] / length
