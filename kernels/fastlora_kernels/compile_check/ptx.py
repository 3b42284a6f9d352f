"""Reads PTX as far as a check of its flow needs it: what follows what, and what a register holds.

Only what Triton makes of these kernels is understood. Nested scopes are flattened. Their labels (the spin of
an mbarrier's wait) are passed over, as if each loop there were left at once.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple


class Instruction(NamedTuple):
    """One instruction.

    Attributes:
        guard: The predicate that it runs under, with "!" in front if negated; "" if none.
        opcode: Such as "add.s32".
        operands: As they stand; a vector or an address is one.
    """

    guard: str
    opcode: str
    operands: tuple[str, ...]

    def has(self, *parts: str) -> bool:
        """Whether every one of these is a part of the opcode."""
        return set(parts) <= set(self.opcode.split("."))


class UnknownValueError(Exception):
    """A register's value does not follow from the parameters alone."""


_STATEMENT: Final = re.compile(r"^(?:@(!?%?\w+)\s+)?([a-z][\w.:]*)\s*(.*)$")
_LABEL: Final = re.compile(r"^(\$L\w+):")
_OPERAND: Final = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*")
_NO_RESULT: Final = (
    "st",
    "red",
    "bra",
    "bar",
    "barrier",
    "ret",
    "exit",
    "cp",
    "fence",
    "mbarrier",
    "prefetch",
)


class Program:
    """One kernel.

    Attributes:
        parameters: Their names, in order.
        instructions: In order.
        following: For each, the numbers of those that can come next; a taken branch's last.
        definitions: For each register, the numbers of the instructions that write it.
    """

    def __init__(self, ptx: str) -> None:
        head, _, body = ptx.partition("\n{")
        self.parameters = re.findall(r"\.param\s.*?(\w+)\s*(?:\[\d+\])?\s*,?\s*$", head, re.MULTILINE)
        self.instructions: list[Instruction] = []
        labels: dict[str, int] = {}
        for statement in _statements(body):
            if isinstance(statement, str):
                labels[statement] = len(self.instructions)
            else:
                self.instructions.append(statement)
        self.following = [self._after(number, labels) for number in range(len(self.instructions))]
        self.definitions: dict[str, list[int]] = {}
        for number, one in enumerate(self.instructions):
            if one.operands and one.opcode.split(".")[0] not in _NO_RESULT:
                for register in re.findall(r"%\w+", one.operands[0]):
                    self.definitions.setdefault(register, []).append(number)

    def _after(self, number: int, labels: dict[str, int]) -> tuple[int, ...]:
        one = self.instructions[number]
        next_one = (number + 1,) if number + 1 < len(self.instructions) else ()
        if one.has("ret") or one.has("exit"):
            return next_one if one.guard else ()
        if not one.has("bra") or one.operands[0] not in labels:
            return next_one
        target = (labels[one.operands[0]],)
        return (*next_one, *target) if one.guard else target

    def reachable(self, start: int) -> set[int]:
        """The numbers of the instructions that can come after one."""
        seen: set[int] = set()
        todo = list(self.following[start])
        while todo:
            number = todo.pop()
            if number not in seen:
                seen.add(number)
                todo.extend(self.following[number])
        return seen

    def sources(self, operand: str) -> set[str]:
        """The 64-bit parameters from which an address may be made, by any of its registers' definitions."""
        found: set[str] = set()
        seen: set[str] = set()
        todo = re.findall(r"%rd\d+", operand)
        while todo:
            register = todo.pop()
            if register in seen:
                continue
            seen.add(register)
            for number in self.definitions.get(register, ()):
                one = self.instructions[number]
                if one.has("ld", "param"):
                    found.add(_parameter(one))
                for source in one.operands[1:]:
                    todo.extend(re.findall(r"%rd\d+", source))
        return found

    def value(self, operand: str, given: Mapping[str, int]) -> int:
        """What an operand holds where the parameters have these values.

        Raises:
            UnknownValueError: If it does not follow from them, or by an instruction that is not known here.
        """
        if re.fullmatch(r"-?\d+", operand):
            return int(operand)
        numbers = self.definitions.get(operand, ())
        if len(numbers) != 1 or self.instructions[numbers[0]].guard:
            raise UnknownValueError(operand)
        one = self.instructions[numbers[0]]
        if one.has("ld", "param"):
            if _parameter(one) not in given:
                raise UnknownValueError(operand)
            return given[_parameter(one)]
        return _result(one, [self.value(source, given) for source in one.operands[1:]])

    def address(self, operand: str, given: Mapping[str, int]) -> int:
        """The address in brackets, as `value`."""
        register, _, offset = operand.strip("[] ").partition("+")
        return self.value(register.strip(), given) + int(offset or 0)


def _statements(body: str) -> Iterator[Instruction | str]:
    """Instructions, and the names of the labels before them."""
    for line in body.partition("$L__func_end")[0].splitlines():
        line = line.partition("//")[0].strip()
        if label := _LABEL.match(line):
            yield label[1]
            line = line[label.end() :]
        for piece in line.split(";"):
            # A brace that opens or closes a scope stands at an end; those of a vector come in pairs.
            piece = piece.strip()
            piece = piece[1:].strip() if piece.startswith("{") else piece
            piece = "" if piece.startswith((".", "}")) else piece
            if found := _STATEMENT.match(piece):
                operands = tuple(operand.strip() for operand in _OPERAND.findall(found[3]))
                yield Instruction(found[1] or "", found[2], operands)


def _parameter(load: Instruction) -> str:
    return load.operands[1].strip("[] ").partition("+")[0]


def _fit(value: int, bits: int) -> int:
    """The signed number that a register of so many bits holds."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def _result(one: Instruction, values: list[int]) -> int:
    """What an instruction of integer arithmetic gives."""
    name, *rest = one.opcode.split(".")
    kind = re.fullmatch(r"([usb])(16|32|64)", rest[-1]) if rest else None
    if kind is None or name not in _ARITHMETIC:
        raise UnknownValueError(one.opcode)
    bits = int(kind[2])
    if "hi" in rest:
        raise UnknownValueError(one.opcode)
    if kind[1] == "u":
        # The third operand of mad.wide is signed in effect: it has the width of the result.
        values = [value & ((1 << bits) - 1) for value in values[:2]] + values[2:]
    if name == "cvt":
        bits = int(rest[-2][1:])
    return _fit(_ARITHMETIC[name](*values), 2 * bits if "wide" in rest else bits)


def _quotient(a: int, b: int) -> int:
    """Rounded towards zero."""
    if b == 0:
        raise UnknownValueError("div by 0")
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


_ARITHMETIC: Final = {
    "mov": lambda a: a,
    "cvt": lambda a: a,
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "mad": lambda a, b, c: a * b + c,
    "div": _quotient,
    "rem": lambda a, b: a - b * _quotient(a, b),
    "min": min,
    "max": max,
    "neg": lambda a: -a,
    "not": lambda a: ~a,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "shl": lambda a, b: a << b,
    "shr": lambda a, b: a >> b,
}
