"""Compiled kernels of a decode step: what lies between the matrix products of a Llama, each read once and written once,
outside the interpreter lock. numba (extra `fast`) compiles them on first use, once a machine.

Sums are in the order that the compiler finds fastest, so bytes are those of `recipe.backend.kernel=fused` alone.
Every row is computed for itself: what it gives does not depend on the rows beside it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

BLOCK = 256  # tokens whose probabilities are summed before the sum is looked at

f32 = np.float32
_ORDER = {"reassoc", "contract", "nsz", "arcp"}  # all of fastmath but "there are no NaN and no infinity"
lowered: Any = intrinsic
kernel: Any = njit(nogil=True, cache=True, fastmath=_ORDER, error_model="numpy")

_COLDEST = f32(-87.0)
_LOG2E, _LN2_HIGH, _LN2_LOW = f32(1.44269504), f32(0.693359375), f32(-2.12194440e-4)
_P0, _P1, _P2 = f32(1.9875691500e-4), f32(1.3981999507e-3), f32(8.3334519073e-3)
_P3, _P4, _P5 = f32(4.1665795894e-2), f32(1.6666665459e-1), f32(5.0000001201e-1)
_ONE, _HALF, _INFINITE = f32(1), f32(0.5), f32(np.inf)


@lowered
def _float_of(typing: Any, bits: Any) -> Any:
    """The float32 with these 32 bits."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), code


@lowered
def _fetch(typing: Any, address: Any) -> Any:
    """Have the processor read a line of memory that is needed soon."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32])
        fetch = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        builder.call(fetch, [builder.inttoptr(arguments[0], byte), i32(0), i32(2), i32(1)])  # to read, into L2, data
        return context.get_dummy_value()

    return types.void(types.uintp), code


@njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy", inline="never")
def exp(x: Any) -> Any:
    """e^x of a float32 x <= 0 to 1e-7, by Cephes' polynomial, without a call, so that loops over it become vectors. 0
    below -87."""
    z = max(x, _COLDEST)
    n = np.int32(z * _LOG2E - _HALF)  # to the nearest, since z <= 0
    m = f32(n)
    r = z - m * _LN2_HIGH
    r = r - m * _LN2_LOW
    p = (((((_P0 * r + _P1) * r + _P2) * r + _P3) * r + _P4) * r + _P5) * (r * r) + r + _ONE
    p = p * _float_of(np.int32((n + np.int32(127)) << np.int32(23)))
    return f32(0) if x < _COLDEST else p


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def largest(x: Any, n: Any) -> Any:
    """Of the first n numbers, at least one; any, where one is NaN."""
    top = x[0]
    for i in range(n):
        top = x[i] if x[i] > top else top
    return top


@kernel
def add_norm(x: Any, delta: Any, weight: Any, epsilon: Any, out: Any) -> None:
    """x += delta; out = x / sqrt(mean(x^2) + epsilon) * weight (RMSNorm, Zhang & Sennrich 2019). [rows, width]"""
    rows, width = x.shape
    for i in range(rows):
        total = f32(0)
        for j in range(width):
            value = x[i, j] + delta[i, j]
            x[i, j] = value
            total += value * value
        scale = _ONE / np.sqrt(total / f32(width) + epsilon)
        for j in range(width):
            out[i, j] = x[i, j] * scale * weight[j]


@kernel
def swiglu(gate_up: Any, out: Any) -> None:
    """silu(gate) * up (Shazeer 2020) of [rows, gate beside up]."""
    rows, width = out.shape
    for i in range(rows):
        for j in range(width):
            gate = gate_up[i, j]
            e = exp(-abs(gate))
            out[i, j] = gate * (_ONE if gate >= 0 else e) / (_ONE + e) * gate_up[i, width + j]


@kernel
def quantize(x: Any, out: Any, scales: Any) -> None:
    """out = x / scale + 128, rounded, of [rows, width]: uint8 in [1, 255], where 128 stands for 0. scales [rows]: each
    row's largest absolute number / 127; NaN where a row has what is no number."""
    rows, width = x.shape
    for i in range(rows):
        top, total = f32(0), f32(0)
        for j in range(width):
            size = abs(x[i, j])
            top = max(top, size)
            total += size
        # not isfinite, which is total - total == 0: where sums may be reordered, that is always so
        if total < _INFINITE:
            scales[i] = top / f32(127)
            inverse = f32(127) / max(top, f32(1e-30))
        else:
            scales[i], inverse = f32(np.nan), f32(0)
        for j in range(width):
            out[i, j] = np.uint8(np.int32(np.rint(x[i, j] * inverse)) + np.int32(128))


@kernel
def rescale(x: Any, rows: Any, columns: Any, bias: Any) -> None:
    """x = x * rows[:, None] * columns + bias, in place, of [rows, columns]."""
    for i in range(len(x)):
        for j in range(len(columns)):
            x[i, j] = x[i, j] * (rows[i] * columns[j]) + bias[j]


@kernel
def attend(
    qkv: Any, slots: Any, positions: Any, cos: Any, sin: Any, keys: Any, values: Any, scaling: Any, out: Any
) -> None:
    """Attention of tokens that each stand at a position of a slot, to all that stand there before them and themselves.

    qkv [tokens, (heads + 2 groups) * width]: queries, keys and values side by side, not yet rotated; of one slot in the
    order of their positions. keys [slots, groups, width, length] and values [slots, groups, length, width] get the new
    ones. cos, sin [length, width / 2]. out [tokens, heads * width]. width is a multiple of 4, length of 16, and what
    lies in a slab is never NaN.

    Keys and values are read once for all heads of a group, at the speed of the memory: those of the next group are
    fetched while this one is computed.
    """
    _, groups, width, length = keys.shape
    each = qkv.shape[1] // width // groups - 2
    half, number = width // 2, len(slots)
    queries = np.empty((each, width), np.float32)
    scores = np.empty((each, length), np.float32)
    slab = np.uintp(4 * width * length)
    for i in range(number):
        slot, p = slots[i], positions[i]
        end = (p // 16 + 1) * 16
        c, s = cos[p], sin[p]
        for g in range(groups):
            k, v = keys[slot, g], values[slot, g]
            at = (groups * each + g) * width
            for d in range(half):
                a, b = qkv[i, at + d], qkv[i, at + half + d]
                k[d, p] = a * c[d] - b * s[d]
                k[half + d, p] = b * c[d] + a * s[d]
            at += groups * width
            for d in range(width):
                v[p, d] = qkv[i, at + d]
            if g + 1 < groups:
                nearby, until = slot * groups + g + 1, end
            elif i + 1 < number:
                nearby, until = slots[i + 1] * groups, (positions[i + 1] // 16 + 1) * 16
            else:
                nearby, until = 0, 0
            next_keys = np.uintp(keys.ctypes.data) + np.uintp(nearby) * slab
            next_values = np.uintp(values.ctypes.data) + np.uintp(nearby) * slab
            for h in range(each):
                at = (g * each + h) * width
                q = queries[h]
                for d in range(half):
                    a, b = qkv[i, at + d] * scaling, qkv[i, at + half + d] * scaling
                    q[d] = a * c[d] - b * s[d]
                    q[half + d] = b * c[d] + a * s[d]
                for t in range(end):
                    scores[h, t] = 0
                for d in range(width):
                    out[i, at + d] = 0
            for d in range(0, width, 4):
                for r in range(d, d + 4):
                    for t in range(0, until, 16):
                        _fetch(next_keys + np.uintp(4 * (r * length + t)))
                k0, k1, k2, k3 = k[d], k[d + 1], k[d + 2], k[d + 3]
                for h in range(each):
                    q0, q1, q2, q3 = queries[h, d], queries[h, d + 1], queries[h, d + 2], queries[h, d + 3]
                    w = scores[h]
                    for t in range(end):
                        w[t] += (q0 * k0[t] + q1 * k1[t]) + (q2 * k2[t] + q3 * k3[t])
            for h in range(each):
                w = scores[h]
                top = largest(w, p + 1)
                total = f32(0)
                for t in range(p + 1):
                    e = exp(w[t] - top)
                    w[t] = e
                    total += e
                share = _ONE / total
                for t in range(p + 1):
                    w[t] *= share
                for t in range(p + 1, end):
                    w[t] = 0
            for t in range(0, (p // 4 + 1) * 4, 4):
                if t < until:
                    for r in range(t * width, (t + 4) * width, 16):
                        _fetch(next_values + np.uintp(4 * r))
                v0, v1, v2, v3 = v[t], v[t + 1], v[t + 2], v[t + 3]
                for h in range(each):
                    at = (g * each + h) * width
                    w0, w1, w2, w3 = scores[h, t], scores[h, t + 1], scores[h, t + 2], scores[h, t + 3]
                    o = out[i, at : at + width]
                    for d in range(width):
                        o[d] += (w0 * v0[d] + w1 * v1[d]) + (w2 * v2[d] + w3 * v3[d])


@kernel
def draw(logits: Any, size: int, cold: Any, u: Any, tokens: Any) -> None:
    """Tokens [rows] of softmax(logits * cold)[:, :size] by inverse CDF: the first whose cumulative probability exceeds
    u. -1 where the logits are no numbers. Overwrites the logits. What the recipe's other options need is in
    genloss.language.sampling."""
    blocks = (size + BLOCK - 1) // BLOCK
    sums = np.empty(blocks, np.float64)
    for i in range(len(tokens)):
        row = logits[i]
        top = largest(row, size)
        for j in range(size):
            row[j] = exp((row[j] - top) * cold)
        whole = 0.0
        for b in range(blocks):
            part = 0.0
            for j in range(b * BLOCK, min(size, (b + 1) * BLOCK)):
                part += np.float64(row[j])
            sums[b] = part
            whole += part
        if not whole < _INFINITE:
            tokens[i] = -1
            continue
        sought = u[i] * whole
        reached = 0.0
        b = 0
        while b < blocks - 1 and reached + sums[b] <= sought:
            reached += sums[b]
            b += 1
        last = -1
        for j in range(b * BLOCK, min(size, (b + 1) * BLOCK)):
            if row[j] > 0:
                last = j
                reached += np.float64(row[j])
                if reached > sought:
                    break
        if last < 0:  # rounding has led to a block of nothing: the last token that can be
            for j in range(size):
                if row[j] > 0:
                    last = j
        tokens[i] = last
