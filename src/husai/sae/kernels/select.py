# pyright: reportMissingImports=false, reportCallIssue=false
"""Numba kernels that find the largest scores. Serial and without the GIL: `share` runs them on blocks.

Floats are compared by their bits: of positive ones the order is the same, halving an interval of bits ends after 31
halvings, and NaN and infinity show as bits above those of any number. Entries are as in `sparse`.
"""

import numpy as np

from husai.sae.kernels.bits import LANES, exceed, lowest
from husai.sae.kernels.sparse import kernel

INFINITY = np.int32(0x7F800000)  # bits of float32 infinity
MAGNITUDE = np.int32(0x7FFFFFFF)  # all bits but the sign
STRIDE = np.int64(1 << 19)  # a sixteenth of a power of two: how far from a guess the next one is


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
    level, stride = guess, STRIDE
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
def exact_level(found, k, low, high, guess):
    """(level, ties): the k largest of `found` are all above level, and `ties` of those at it. As `bracket`, with no slack."""
    low, high = bracket(found, k, low, high, 0, guess)
    if count_above(found, np.int32(low)) == k:
        return low, np.int64(0)
    return high, np.int64(k - count_above(found, np.int32(high)))


@kernel
def keep(places, found, n, level, ties, index, bits):
    """Copy the first n that are above `level`, and the first `ties` of those at it, to index and bits, while there is room.

    Returns how many were copied. Both may be the arrays copied from.
    """
    kept = 0
    for t in range(n):
        if kept == index.shape[0]:
            break
        tie = np.int64(found[t] == level) & np.int64(ties > 0)
        ties -= tie
        index[kept], bits[kept] = places[t], found[t]
        kept += np.int64(found[t] > level) | tie
    return kept


@kernel
def largest(scores, k, index, value, start, count):
    """Entries: the positive ones among the k largest of each row; of equal ones the first. Returns whether all are finite."""
    rows, m = scores.shape
    all_bits, value_bits = scores.view(np.int32), value.view(np.int32)
    places, found = np.empty(m + LANES, np.int32), np.empty(m + LANES, np.int32)
    guess, finite, slack = np.int64(0), True, k // 2 + 8
    for b in range(rows):
        bits = all_bits[b]
        odd, above, at = np.int32(0), np.int32(0), start[b]
        for j in range(m):
            odd = max(odd, bits[j] & MAGNITUDE)
            above += np.int32(bits[j] > guess)
        finite &= odd < INFINITY
        low, high = np.int64(0), np.int64(odd)
        if above < k:
            if guess > 0 and count_above(bits, np.int32(0)) > k:
                low, high = bracket(bits, k, low, guess, slack, guess - STRIDE)
        elif above > k + slack:
            low, high = bracket(bits, k, guess, high, slack, guess + STRIDE)
        else:
            low = guess
        guess = low
        n, level, ties = gather_above(bits, np.int32(low), places, found), low, np.int64(0)
        if n > k:
            padded = (n + LANES - 1) // LANES * LANES
            found[n:padded] = 0
            level, ties = exact_level(found[:padded], k, low, high, low + (high - low) // 4)
        count[b] = keep(places, found, n, level, ties, index[at : at + k], value_bits[at : at + k])
    return finite


@kernel
def all_above(scores, level, index, value, start, count):
    """Entries: all scores with bits above `level`, from start[0] on without gaps. Returns whether all are finite."""
    rows, m = scores.shape
    all_bits, value_bits = scores.view(np.int32), value.view(np.int32)
    odd, at = np.int32(0), start[0]
    for b in range(rows):
        for j in range(m):
            odd = max(odd, all_bits[b, j] & MAGNITUDE)
        start[b] = at
        count[b] = gather_above(all_bits[b], np.int32(level), index[at:], value_bits[at:])
        at += count[b]
    return odd < INFINITY


@kernel
def count_at(bits, level):
    count = 0
    for j in range(bits.shape[0]):
        count += bits[j] == level
    return count


@kernel
def least_above(bits, level):
    """The least of `bits` above `level`; the bits of infinity if there is none."""
    least = INFINITY
    for j in range(bits.shape[0]):
        least = min(least, bits[j] if bits[j] > level else INFINITY)
    return least


@kernel
def trim(index, value, start, count, level, ties):
    """Of the entries keep those above `level` and the first `ties` at it. Rows stay where they start."""
    bits = value.view(np.int32)
    for b in range(count.shape[0]):
        at, n = start[b], count[b]
        there = np.int64(0)
        if ties > 0:
            there += count_at(bits[at : at + n], level)
        count[b] = keep(index[at:], bits[at:], n, level, ties, index[at : at + n], bits[at : at + n])
        ties -= min(ties, there)
