"""Matrix products of a warp, and matrices between shared memory and registers (9.7.15).

Products are exact and summed in fp32, then added to the accumulator in fp32. Hardware sums in another order
and cuts off low bits, so last bits may differ from a GPU's.
"""

from __future__ import annotations

import numpy as np

from tests.ptx import floating
from tests.ptx.faults import UnknownInstruction
from tests.ptx.machine import Code, Group
from tests.ptx.memory import Access
from tests.ptx.parse import Instruction, Program, Vector
from tests.ptx.registers import address, read, write
from tests.ptx.table import instruction

VALUE = {"bf16": floating.bf16_value, "f16": floating.fp16_value, "tf32": floating.tf32_value}


def _parts(operand: object) -> tuple:
    return operand.parts if isinstance(operand, Vector) else (operand,)


def stacked(gets: list, g: Group) -> np.ndarray:
    """[warps, registers, 32]."""
    return np.stack([g.full(get(g)) for get in gets], axis=1)


@instruction("mma")
def multiply(i: Instruction, program: Program) -> Code:
    """9.7.15.5.14: D = A B + C with A [16, k] and B [k, 8].

    Lane l is (l // 4, l % 4) = (group, place). A register of 16-bit elements holds two neighbours along k.
    """
    shape, kind = i.opcode[3], i.opcode[-2]
    forms = {
        ("m16n8k16", "bf16"),
        ("m16n8k16", "f16"),
        ("m16n8k8", "tf32"),
        ("m16n8k8", "bf16"),
        ("m16n8k8", "f16"),
    }
    if (shape, kind) not in forms or i.opcode[1:3] != ("sync", "aligned") or i.opcode[6] != "f32":
        raise UnknownInstruction(i.text)
    puts = [write(one, 32) for one in _parts(i.operands[0])]
    a, b, c = ([read(one, 32) for one in _parts(operand)] for operand in i.operands[1:])

    def code(g: Group) -> None:
        left, right = fragment(stacked(a, g), kind, True), fragment(stacked(b, g), kind, False)
        product = left @ right.swapaxes(1, 2)  # [warps, 16, 8]
        # An accumulator register is (row // 8, column % 2), a lane (row % 8, column // 2): 9.7.15.5.8.
        product = product.reshape(-1, 2, 8, 4, 2).transpose(0, 1, 4, 2, 3).reshape(-1, 4, 32)
        result = (product + stacked(c, g).view(np.float32)).view(np.uint32)
        for index, put in enumerate(puts):
            put(g, result[:, index])

    return code


def fragment(registers: np.ndarray, kind: str, is_left: bool) -> np.ndarray:
    """[warps, registers, 32] -> A [warps, 16, k] or Bᵀ [warps, 8, k] in fp32 (9.7.15.5.4 to 9.7.15.5.8).

    A's registers are (k half, row half), B's are (k half).
    """
    count, number, _ = registers.shape
    words = np.ascontiguousarray(registers)
    each = 1 if kind == "tf32" else 2
    elements = words if each == 1 else words.view(np.uint16)
    halves = number // 2 if is_left else number
    if is_left:
        split = elements.reshape(count, halves, 2, 8, 4, each).transpose(0, 2, 3, 1, 4, 5)
        return VALUE[kind](np.ascontiguousarray(split.reshape(count, 16, -1)))
    split = elements.reshape(count, halves, 8, 4, each).transpose(0, 2, 1, 3, 4)
    return VALUE[kind](np.ascontiguousarray(split.reshape(count, 8, -1)))


def _matrices(i: Instruction, number: int) -> None:
    named = {"x1": 1, "x2": 2, "x4": 4}
    if i.opcode[3] != "m8n8" or named[i.opcode[4]] != number or i.opcode[-1] != "b16":
        raise UnknownInstruction(i.text)


def _rows(g: Group, at: Code, number: int) -> tuple[np.ndarray, Access]:
    """The addresses that the lanes give for the rows of the matrices, and who takes them."""
    rows = g.full(at(g) + g.base)[:, : 8 * number].ravel()
    return rows, g.access(np.repeat(np.arange(len(g.rows)), 8 * number))


@instruction("ldmatrix")
def load_matrix(i: Instruction, program: Program) -> Code:
    """9.7.15.5.15: matrices of 8 x 8 16-bit elements; lanes 8 j to 8 j + 7 give the rows of matrix j."""
    puts = [write(one, 32) for one in _parts(i.operands[0])]
    number, at, transposed = len(puts), address(i.operands[1]), i.has("trans")
    _matrices(i, number)

    def code(g: Group) -> None:
        rows, access = _rows(g, at, number)
        raw = g.machine.shared.load(rows, 16, access, g.machine.clocks)
        matrices = np.ascontiguousarray(raw).view(np.uint16).reshape(-1, number, 8, 8)
        if transposed:
            matrices = np.ascontiguousarray(matrices.swapaxes(2, 3))
        words = matrices.view(np.uint32).reshape(-1, number, 32)
        for index, put in enumerate(puts):
            put(g, words[:, index])

    return code


@instruction("stmatrix")
def store_matrix(i: Instruction, program: Program) -> Code:
    """9.7.15.5.16: the reverse of ldmatrix."""
    gets = [read(one, 32) for one in _parts(i.operands[1])]
    number, at, transposed = len(gets), address(i.operands[0]), i.has("trans")
    _matrices(i, number)

    def code(g: Group) -> None:
        rows, access = _rows(g, at, number)
        matrices = np.ascontiguousarray(stacked(gets, g)).view(np.uint16).reshape(-1, number, 8, 8)
        if transposed:
            matrices = np.ascontiguousarray(matrices.swapaxes(2, 3))
        raw = matrices.view(np.uint8).reshape(-1, 16)
        g.machine.shared.store(rows, raw, access, g.machine.clocks)

    return code
