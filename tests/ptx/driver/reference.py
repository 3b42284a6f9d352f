"""What a call should give: in fp64, in unfused torch as a measure, and how far each element may be off."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fastlora.measuring.errors import split_eps
from fastlora.measuring.inputs import Inputs


def philox_mask(seed: int, threshold: int, M: int, K: int) -> Tensor:
    """[M, K] bool, where x is kept: Philox-4x32 of 7 rounds (Salmon et al., SC 2011), by its definition.

    Its counter is (column // 8, row, 0, 0), its key the seed. Each of the four words gives 16 low bits,
    then each 16 high ones, in the order 0, 2, 1, 3, to 8 columns.
    """
    low, word = np.uint64(0xFFFFFFFF), np.uint64
    key = [word(seed & 0xFFFFFFFF), word(seed >> 32 & 0xFFFFFFFF)]
    blocks, rows = np.meshgrid(np.arange((K + 7) // 8, dtype=np.uint64), np.arange(M, dtype=np.uint64))
    a, b, c, d = blocks, rows, np.zeros_like(rows), np.zeros_like(rows)
    for _ in range(7):
        first, second = word(0xD2511F53) * a, word(0xCD9E8D57) * c
        a, b = (second >> word(32)) ^ b ^ key[0], second & low
        c, d = (first >> word(32)) ^ d ^ key[1], first & low
        key = [(key[0] + word(0x9E3779B9)) & low, (key[1] + word(0xBB67AE85)) & low]
    halves = [(one >> word(shift)) & word(0xFFFF) for shift in (0, 16) for one in (a, c, b, d)]
    bits = np.stack(halves, -1).reshape(M, -1)[:, :K].astype(np.int64)
    return torch.from_numpy(bits >= threshold)


def cut_to_tf32(value: Tensor) -> Tensor:
    """fp32 with the 13 low bits cut off, as a matrix unit takes it."""
    return (value.view(torch.int32) & -8192).view(torch.float32)


def tf32_product(a: Tensor, b: Tensor) -> Tensor:
    """a b with tf32 operands; 16-bit ones, of narrow adapters, as they are."""
    if a.dtype != torch.float32:
        return a @ b
    return cut_to_tf32(a.contiguous()) @ cut_to_tf32(b.contiguous())


def unfused(
    i: Inputs, D: Tensor, product: Callable[[Tensor, Tensor], Tensor] = torch.matmul
) -> dict[str, Tensor]:
    """y, p, dx, dA and dB in separate operations in the operands' own dtypes.

    Args:
        i: The operands.
        D: [M, K], the mask with its scale; ones without dropout.
        product: The matrix product.
    """
    kind, adapter = i.x.dtype, i.A.dtype
    x_d = (i.x * D.to(kind)).to(adapter)
    p = product(x_d, i.A.t())
    y = product(i.x, i.W.t())
    y = y if i.b is None else y + i.b
    y = y + (i.s * product(p, i.B.t())).to(kind)
    dy_s = i.dy.to(adapter) * i.s
    q = product(dy_s, i.B)
    dx = product(i.dy, i.W) + product(q, i.A).to(kind) * D.to(kind)
    return {"y": y, "p": p, "dx": dx, "dA": product(q.t(), x_d), "dB": product(dy_s.t(), p)}


def with_scaled_rows(i: Inputs, c: Tensor) -> Inputs:
    """Operands that give without DoRA what these give with it: rows of W and B times c [N] in fp64."""
    W, B = ((c[:, None] * one.double()).to(one.dtype) for one in (i.W, i.B))
    return dataclasses.replace(i, W=W, B=B)


def unfused_dora(
    i: Inputs, c: Tensor, D: Tensor, product: Callable[[Tensor, Tensor], Tensor] = torch.matmul
) -> dict[str, Tensor]:
    """As `unfused`, with y = c z + b; and z."""
    found = unfused(with_scaled_rows(i, c), D, product)
    z = unfused(dataclasses.replace(i, b=None), D, product)["y"]
    return found | {"dB": (c[:, None] * found["dB"]).to(i.B.dtype), "z": z}


def dora_bounds(i: Inputs, c: Tensor, D: Tensor, precision: str) -> dict[str, Tensor]:
    """As `element_bounds`; q takes c B rounded to B's dtype, and dx takes c dy rounded to dy's."""
    scaled = with_scaled_rows(i, c)
    bounds = element_bounds(scaled, D, precision)
    u, u_adapter = (torch.finfo(one).eps / 2 for one in (i.x.dtype, i.A.dtype))
    z = scaled.to(torch.float64)
    x, W, A, B, dy = (one.abs() for one in (z.x, z.W, z.A, z.B, z.dy))
    e_q = abs(i.s) * (dy @ B) * u_adapter
    return bounds | {
        "dx": bounds["dx"] + (dy @ W) * u + D * (e_q @ A),
        "dA": bounds["dA"] + e_q.t() @ (x * D),
        "dB": bounds["dB"] * c.abs()[:, None],
        "z": element_bounds(dataclasses.replace(i, b=None), D, precision)["y"],
    }


def element_bounds(i: Inputs, D: Tensor, precision: str) -> dict[str, Tensor]:
    """How far each element of a result may be from fp64, to first order in the roundings that the kernels do.

    Sums are in fp32, so n terms are off by (n + 64) 2^-24 of their magnitudes' sum at most; a rounding to a
    dtype by half its eps. tf32 cuts both operands, by 2^-10 each. s p, and B and A where they are cast, are
    rounded to x's dtype. fp32 adapters on 16 bits are two terms (`split_eps`). fp16 has no numbers below
    2^-24. p and q are rounded to it if the adapters are fp16 too, else to tf32, which has as many bits. In y
    and dx the fp16 rounding is of p times s without a power of two, so times 1/2 at least.
    """
    z = i.to(torch.float64)
    x, W, A, B, dy = (one.abs() for one in (z.x, z.W, z.A, z.B, z.dy))
    (M, K), N, r, s = x.shape, W.shape[0], A.shape[0], abs(i.s)
    half = i.x.dtype != torch.float32
    u, u_adapter = (torch.finfo(one).eps / 2 for one in (i.x.dtype, i.A.dtype))
    tiny = 2.0**-25 if i.x.dtype == i.A.dtype == torch.float16 else 0.0
    cut = 2 * 2.0**-10 if precision == "tf32" and not half else 0.0
    two_terms = split_eps(i)
    cast = u if half and i.A.dtype != i.x.dtype and not two_terms else 0.0
    small = two_terms or (u if half else 0.0)  # of p and q in the products that make dA and dB
    low = (u if half else 0.0) + (u if half and i.A.dtype != i.x.dtype else 0.0) + cut

    def summed(n: int) -> float:
        return (n + 64) * 2.0**-24

    x_d = (x * D).abs()
    P, Q = (z.x * D) @ z.A.t(), z.s * z.dy @ z.B
    e_p = (x_d @ A.t()) * (summed(K) + cut + two_terms + cast)
    e_q = s * ((dy @ B) * (summed(N) + cut + two_terms + cast))
    P, Q = P.abs() + e_p, Q.abs() + e_q
    y = (x @ W.t()) * (summed(K) + cut) + s * (e_p @ B.t() + P @ B.t() * (low + summed(r)))
    y = y + 2 * s * tiny * B.sum(1)
    y = y if z.b is None else y + z.b.abs() * 2.0**-24
    dx = (dy @ W) * (summed(N) + cut) + D * (e_q @ A + Q @ A * (low + summed(r)) + 2 * tiny * A.sum(0))
    dA = e_q.t() @ x_d + Q.t() @ x_d * (small + cut + summed(M)) + tiny * x_d.sum(0)
    dB = s * (dy.t() @ e_p + dy.t() @ P * (small + cut + summed(M)) + tiny * dy.sum(0)[:, None])
    truth = unfused(z, D)
    bounds = {"y": (y, u), "p": (e_p, 0.0), "dx": (dx, u), "dA": (dA, u_adapter), "dB": (dB, u_adapter)}
    least = torch.finfo(torch.float16).smallest_normal * 2.0**-11
    return {
        name: bound * (1 + rounding)
        + truth[name].abs() * rounding
        + (least if rounding == 2.0**-11 else 1e-38)
        for name, (bound, rounding) in bounds.items()
    }
