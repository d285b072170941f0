# pyright: reportMissingImports=false, reportCallIssue=false
"""Numba kernels of one SAE step whose codes are sparse. Serial and without the GIL: `share` runs them on blocks.

Axes: rows R of a block, samples B, latents m, inputs d. Entries are the codes that are not zero, in flat arrays; those of
row b lie at start[b] … start[b] + count[b], and a block's from start of its first row on.
"""

import numba
import numpy as np

from husai.sae.kernels.bits import LANES, add_rows

kernel = numba.njit(nogil=True, fastmath=True, error_model="numpy", cache=True)


@kernel
def add_weighted(out, rows, index, weight, scale, first, last):
    """out += Σ_t scale · weight[t] · rows[index[t]] over first ≤ t < last."""
    whole = out.shape[0] // LANES * LANES
    for at in range(0, whole, LANES):
        add_rows(out, rows, at, index, weight, scale, first, last)
    for t in range(first, last if whole < out.shape[0] else first):
        row, factor = rows[index[t]], scale * weight[t]
        for c in range(whole, out.shape[0]):
            out[c] += factor * row[c]


@kernel
def decode(x, W_dec, b_dec, scale, index, value, start, count, error, slope):
    """error = x̂ − x; slope: d(scale/2 · Σ error²) / d value for every entry. Returns Σ error²."""
    rows, d = x.shape
    total = 0.0
    for b in range(rows):
        e, first, last = error[b], start[b], start[b] + count[b]
        for c in range(d):
            e[c] = b_dec[c] - x[b, c]
        add_weighted(e, W_dec, index, value, np.float32(1), first, last)
        whole = first + (last - first) // 4 * 4
        square = np.float32(0)
        for c in range(d):
            square += e[c] * e[c]
        total += square
        for t in range(first, whole, 4):
            p, q, r, s = W_dec[index[t]], W_dec[index[t + 1]], W_dec[index[t + 2]], W_dec[index[t + 3]]
            h, i, j, k = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
            for c in range(d):
                h += e[c] * p[c]
                i += e[c] * q[c]
                j += e[c] * r[c]
                k += e[c] * s[c]
            slope[t], slope[t + 1], slope[t + 2], slope[t + 3] = scale * h, scale * i, scale * j, scale * k
        for t in range(whole, last):
            p, along = W_dec[index[t]], np.float32(0)
            for c in range(d):
                along += e[c] * p[c]
            slope[t] = scale * along
    return total


@kernel
def sort_block(first_row, index, value, slope, start, count, column, fired, row_of, value_of, slope_of):
    """Entries of a block of rows that have a value or a slope, by latent; latent f's from start[0] + column[f] on.

    fired (m): which latents have a value. Returns how many values there are and the largest magnitude.
    """
    m, active, every, peak = column.shape[0] - 1, 0, 0, np.float32(0)
    column[:] = 0
    for b in range(count.shape[0]):
        every += count[b]
        for t in range(start[b], start[b] + count[b]):
            active += value[t] != 0
            peak = max(peak, abs(value[t]))
    all_active = active == every
    for b in range(count.shape[0]):
        for t in range(start[b], start[b] + count[b]):
            column[np.uint32(index[t]) + 1] += all_active | (value[t] != 0) | (slope[t] != 0)
    for f in range(m):
        fired[f] = column[f + 1] > 0
        column[f + 1] += column[f]
    if column[m] > active:
        fired[:] = False
        for b in range(count.shape[0]):
            for t in range(start[b], start[b] + count[b]):
                fired[index[t]] |= value[t] != 0
    at = column[:m] + start[0]
    for b in range(count.shape[0]):
        for t in range(start[b], start[b] + count[b]):
            if all_active | (value[t] != 0) | (slope[t] != 0):
                f = np.uint32(index[t])
                e = at[f]
                at[f] = e + 1
                row_of[e], value_of[e], slope_of[e] = first_row + b, value[t], slope[t]
    return active, peak


@kernel
def latent_gradients(
    first, last, base, column, row_of, value_of, slope_of, scale, error, x, b_dec, g_dec, g_enc, g_bias
):
    """Gradients of latents first … last: Σ value · scale · error, Σ slope · (x − b_dec) and Σ slope over their entries.

    base (blocks), column (blocks, m + 1): where each block's sorted entries begin, and each latent's among them. One block
    is done for all latents before the next, so that its rows of error and x stay in the cache.
    """
    d = x.shape[1]
    toward = np.zeros((last - first, d), np.float32)
    g_dec[first:last] = 0
    g_bias[first:last] = 0
    for block in range(base.shape[0]):
        for f in range(first, last):
            start, end = base[block] + column[block, f], base[block] + column[block, f + 1]
            add_weighted(g_dec[f], error, row_of, value_of, scale, start, end)
            add_weighted(toward[f - first], x, row_of, slope_of, np.float32(1), start, end)
            for e in range(start, end):
                g_bias[f] += slope_of[e]
    for c in range(d):
        for f in range(first, last):
            g_enc[c, f] = toward[f - first, c] - g_bias[f] * b_dec[c]
