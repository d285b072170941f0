# pyright: reportMissingImports=false, reportCallIssue=false
"""Numba kernels of codes that pass a threshold θ, a penalty on them, and the thresholds' gradients.

Penalties, with weight w = λ/B: l1 is w·f·n (n the norm of the decoder row), step is w for every code, tanh is
w·tanh(c·f·n). Where |h − θ| < bandwidth/2, a pre-activation h is in the band: it adds −(θ·d f + d step)/bandwidth to its
threshold's gradient, as in `jumprelu.jump`. A bandwidth of 0 leaves thresholds alone.
"""

import math

import numpy as np

from husai.sae.kernels.bits import LANES, exceed_each, lowest
from husai.sae.kernels.select import INFINITY, MAGNITUDE
from husai.sae.kernels.sparse import kernel


@kernel
def finite(hidden):
    """Whether no value is NaN or infinite."""
    bits, odd = hidden.view(np.int32), np.int32(0)
    for b in range(bits.shape[0]):
        for j in range(bits.shape[1]):
            odd = max(odd, bits[b, j] & MAGNITUDE)
    return odd < INFINITY


@kernel
def passing(hidden, threshold, low, bandwidth, index, value, start, count):
    """Entries: all above their threshold, and with value 0 those below it in the band; low: no more than either bound."""
    rows, m = hidden.shape
    whole, half, at = m // LANES * LANES, bandwidth * np.float32(0.5), start[0]
    for b in range(rows):
        h, start[b] = hidden[b], at
        for j in range(0, m, LANES):
            if j < whole:
                mask = exceed_each(h, j, low)
                while mask != 0:
                    i = j + lowest(mask)
                    mask &= mask - 1
                    index[at], value[at] = i, h[i] if h[i] > threshold[i] else np.float32(0)
                    at += (h[i] > threshold[i]) | (threshold[i] - h[i] < half)
            else:
                for i in range(j, m):
                    index[at], value[at] = i, h[i] if h[i] > threshold[i] else np.float32(0)
                    at += (h[i] > threshold[i]) | (threshold[i] - h[i] < half)
        count[b] = at - start[b]


@kernel
def price(index, value, slope, start, count, threshold, norms, gate, inward, outward):
    """Add the penalty to the slopes of entries. gate: weights of l1, step and tanh; c, bandwidth, whether h feels the band.

    inward (m): the penalty's derivatives by the norms; outward (m): by the thresholds. Returns the penalty.
    """
    l1, step, tanh, c, bandwidth, to_input = gate
    total, half = 0.0, bandwidth * np.float32(0.5)
    inward[:] = 0
    outward[:] = 0
    for b in range(count.shape[0]):
        for t in range(start[b], start[b] + count[b]):
            i, f = index[t], value[t]
            n, active = norms[i], f != 0
            along = slope[t] + l1 * n
            inward[i] += l1 * f
            if tanh != 0:
                bent = math.tanh(c * f * n)
                steep = tanh * c * (np.float32(1) - bent * bent)
                along += steep * n
                inward[i] += steep * f
                total += tanh * bent
            total += l1 * f * n + (step if active else np.float32(0))
            pull = np.float32(0)
            if (half > 0) & ((f == 0) | (f - threshold[i] < half)):
                pull = (threshold[i] * along + step) / bandwidth
            outward[i] -= pull
            slope[t] = (along if active else np.float32(0)) + (pull if to_input else np.float32(0))
    return total


@kernel
def let_through(hidden, threshold, codes):
    """codes: h where it is above its threshold, else 0. Returns the largest magnitude."""
    peak = np.float32(0)
    for b in range(hidden.shape[0]):
        h, f = hidden[b], codes[b]
        for j in range(h.shape[0]):
            f[j] = h[j] if h[j] > threshold[j] else np.float32(0)
            peak = max(peak, abs(f[j]))
    return peak


@kernel
def price_dense(hidden, codes, slopes, threshold, norms, gate, inward, outward, bias, uses):
    """As `price`, of whole rows and without tanh; bias (m): sums of slopes, uses (m): how many codes there are."""
    l1, step, _, _, bandwidth, to_input = gate
    half, through = bandwidth * np.float32(0.5), np.float32(1) if to_input else np.float32(0)
    per = np.float32(1) / bandwidth if bandwidth > 0 else np.float32(0)
    inward[:] = 0
    outward[:] = 0
    bias[:] = 0
    uses[:] = 0
    for b in range(hidden.shape[0]):
        h, f, s = hidden[b], codes[b], slopes[b]
        for j in range(h.shape[0]):
            active, away = h[j] > threshold[j], abs(h[j] - threshold[j])
            along = s[j] + l1 * norms[j]
            pull = (threshold[j] * along + step) * per if away < half else np.float32(0)
            s[j] = (along if active else np.float32(0)) + through * pull
            inward[j] += l1 * f[j]
            outward[j] -= pull
            bias[j] += s[j]
            uses[j] += np.float32(1) if active else np.float32(0)
