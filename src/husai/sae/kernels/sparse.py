# pyright: reportMissingImports=false, reportCallIssue=false
"""Numba kernels of one SAE step whose codes are sparse. Serial and without the GIL: `share` runs them on blocks.

Axes: rows R of a block, samples B, latents m, inputs d. Entries are the codes that are not zero, in flat arrays; those of
row b lie at start[b] … start[b] + count[b], and a block's from start of its first row on.
"""

import numba
import numpy as np

kernel = numba.njit(nogil=True, fastmath=True, error_model="numpy", cache=True)


@kernel
def decode(x, W_dec, b_dec, scale, index, value, start, count, error, slope):
    """error = x̂ − x; slope: d(scale/2 · Σ error²) / d value for every entry. Returns Σ error²."""
    rows, d = x.shape
    total = 0.0
    for b in range(rows):
        e, first, last = error[b], start[b], start[b] + count[b]
        for c in range(d):
            e[c] = b_dec[c] - x[b, c]
        whole = first + (last - first) // 4 * 4
        for t in range(first, whole, 4):
            p, q, r, s = W_dec[index[t]], W_dec[index[t + 1]], W_dec[index[t + 2]], W_dec[index[t + 3]]
            for c in range(d):
                e[c] += value[t] * p[c] + value[t + 1] * q[c] + value[t + 2] * r[c] + value[t + 3] * s[c]
        for t in range(whole, last):
            p = W_dec[index[t]]
            for c in range(d):
                e[c] += value[t] * p[c]
        square = np.float32(0)
        for c in range(d):
            square += e[c] * e[c]
        total += square
        for t in range(first, last):
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
    m, active, peak = column.shape[0] - 1, 0, np.float32(0)
    column[:] = 0
    fired[:] = False
    for b in range(count.shape[0]):
        for t in range(start[b], start[b] + count[b]):
            v = value[t]
            column[index[t] + 1] += (v != 0) | (slope[t] != 0)
            fired[index[t]] |= v != 0
            active += v != 0
            peak = max(peak, abs(v))
    for f in range(m):
        column[f + 1] += column[f]
    at = column[:m] + start[0]
    for b in range(count.shape[0]):
        for t in range(start[b], start[b] + count[b]):
            if (value[t] != 0) | (slope[t] != 0):
                e = at[index[t]]
                at[index[t]] = e + 1
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
            atom, feature, bias = g_dec[f], toward[f - first], g_bias[f]
            whole = start + (end - start) // 4 * 4
            for e in range(start, whole, 4):
                h, i, j, k = row_of[e], row_of[e + 1], row_of[e + 2], row_of[e + 3]
                p, q, r, s = (
                    scale * value_of[e],
                    scale * value_of[e + 1],
                    scale * value_of[e + 2],
                    scale * value_of[e + 3],
                )
                for c in range(d):
                    atom[c] += p * error[h, c] + q * error[i, c] + r * error[j, c] + s * error[k, c]
                p, q, r, s = slope_of[e], slope_of[e + 1], slope_of[e + 2], slope_of[e + 3]
                for c in range(d):
                    feature[c] += p * x[h, c] + q * x[i, c] + r * x[j, c] + s * x[k, c]
                bias += p + q + r + s
            for e in range(whole, end):
                i, p, q = row_of[e], scale * value_of[e], slope_of[e]
                for c in range(d):
                    atom[c] += p * error[i, c]
                    feature[c] += q * x[i, c]
                bias += q
            g_bias[f] = bias
    for c in range(d):
        for f in range(first, last):
            g_enc[c, f] = toward[f - first, c] - g_bias[f] * b_dec[c]
