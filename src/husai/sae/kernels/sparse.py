# pyright: reportMissingImports=false, reportCallIssue=false
"""Numba kernels of one SAE step whose codes are sparse. Serial and without the GIL: `share` runs them on blocks.

Axes: rows R of a block, samples B, latents m, inputs d. Entries are the codes that are not zero, in flat arrays; those of
row b lie at start[b] … start[b] + count[b]. Floats are compared by their bits: of positive ones the order is the same,
halving an interval of bits ends after 31 halvings, and NaN and infinity show as bits above those of any number.
"""

import numba
import numpy as np

from husai.sae.kernels.bits import LANES, exceed, lowest

INFINITY = np.int32(0x7F800000)  # bits of float32 infinity
MAGNITUDE = np.int32(0x7FFFFFFF)  # all bits but the sign

kernel = numba.njit(nogil=True, fastmath=True, error_model="numpy", cache=True)


@kernel
def count_above(bits, level):
    count = np.int32(0)
    for j in range(bits.shape[0]):
        count += np.int32(bits[j] > level)
    return count


@kernel
def bracket(bits, k, low, high, slack, guess):
    """Narrow (low, high) until k … k + slack of `bits` exceed low, or until they touch.

    At least k exceed low and fewer than k exceed high, before and after. Returns low, high.
    """
    level, stride = guess, np.int64(1 << 19)
    while high - low > 1:
        middle = low + (high - low) // 2
        if not low < level < high:
            level = middle
        count = count_above(bits, np.int32(level))
        if count >= k:
            low = level
            if count <= k + slack:
                break
            level = min(level + stride, low + (high - low) // 2)
        else:
            high = level
            level = max(level - stride, low + (high - low) // 2)
        stride *= 2
    return low, high


@kernel
def gather_above(bits, level, index, found):
    """Places and bits of all above `level`, in order. Returns how many."""
    n, whole = 0, bits.shape[0] // LANES * LANES
    for j in range(0, whole, LANES):
        mask = exceed(bits, j, level)
        while mask != 0:
            i = j + lowest(mask)
            index[n] = i
            found[n] = bits[i]
            n += 1
            mask &= mask - 1
    for j in range(whole, bits.shape[0]):
        index[n] = j
        found[n] = bits[j]
        n += np.int64(bits[j] > level)
    return n


@kernel
def largest(scores, k, index, value, start, count):
    """Entries: the positive ones among the k largest of each row; of equal ones the first. Returns whether all are finite."""
    rows, m = scores.shape
    all_bits, value_bits = scores.view(np.int32), value.view(np.int32)
    places, found = np.empty(m + LANES, np.int32), np.empty(m + LANES, np.int32)
    guess, finite = np.int64(0), True
    for b in range(rows):
        bits = all_bits[b]
        top, odd, positive = np.int32(0), np.int32(0), np.int32(0)
        for j in range(m):
            top = max(top, bits[j])
            odd = max(odd, bits[j] & MAGNITUDE)
            positive += np.int32(bits[j] > 0)
        finite &= odd < INFINITY
        low, high = np.int64(0), np.int64(top)
        if positive > k:
            low, high = bracket(bits, k, low, high, k // 2 + 8, guess)
            guess = low
        n, at, kept = gather_above(bits, np.int32(low), places, found), start[b], 0
        ties = np.int64(0)
        if n > k:
            padded = (n + LANES - 1) // LANES * LANES
            found[n:padded] = 0
            low, high = bracket(found[:padded], k, low, high, 0, low + (high - low) // 4)
            ties = k - count_above(found[:padded], np.int32(high))
            if count_above(found[:padded], np.int32(low)) == k:
                high = low
        else:
            high = low
        for t in range(n):
            tie = np.int64(found[t] > low) & np.int64(found[t] <= high) & np.int64(ties > 0)
            ties -= tie
            places[kept], found[kept] = places[t], found[t]
            kept += np.int64(found[t] > high) | tie
        count[b] = kept
        for t in range(kept):
            index[at + t], value_bits[at + t] = places[t], found[t]
    return finite


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
def tally(index, start, count, uses):
    """How often each latent is among the entries of these rows."""
    uses[:] = 0
    for b in range(count.shape[0]):
        for t in range(start[b], start[b] + count[b]):
            uses[index[t]] += 1


@kernel
def places(uses, column):
    """uses (blocks, m) becomes where each block's entries go when sorted by latent; column (m + 1): the latents' bounds."""
    blocks, m = uses.shape
    at = 0
    for f in range(m):
        column[f] = at
        for i in range(blocks):
            n = uses[i, f]
            uses[i, f] = at
            at += n
    column[m] = at


@kernel
def sort_by_latent(first_row, index, value, slope, start, count, at, row_of, value_of, slope_of):
    """Move entries to their places `at`, which are used up."""
    for b in range(count.shape[0]):
        for t in range(start[b], start[b] + count[b]):
            f = index[t]
            e = at[f]
            at[f] = e + 1
            row_of[e] = first_row + b
            value_of[e] = value[t]
            slope_of[e] = slope[t]


@kernel
def latent_gradients(
    first, last, group, column, ends, row_of, value_of, slope_of, scale, error, x, b_dec, g_dec, g_enc, g_bias
):
    """Gradients of latents first … last: Σ value · scale · error, Σ slope · (x − b_dec) and Σ slope over their entries.

    ends[i, f]: where latent f's entries of block i of samples end. `group` blocks are done for all latents before the next
    ones, so that their rows of error and x stay in the cache.
    """
    d, blocks = x.shape[1], ends.shape[0]
    toward = np.zeros((last - first, d), np.float32)
    g_dec[first:last] = 0
    g_bias[first:last] = 0
    for block in range(0, blocks, group):
        for f in range(first, last):
            start = column[f] if block == 0 else ends[block - 1, f]
            end = ends[min(block + group, blocks) - 1, f]
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
