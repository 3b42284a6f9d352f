"""From PTX text to instructions (4, "Syntax")."""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

from tests.ptx.faults import UnknownInstruction


class Register(NamedTuple):
    """A register, by its number."""

    number: int
    bits: int
    name: str


class Immediate(NamedTuple):
    """A constant, as its bits."""

    value: int


class Special(NamedTuple):
    """A special register, such as %tid.x."""

    name: str


class Parameter(NamedTuple):
    """A parameter of the kernel: its address."""

    name: str


class Negated(NamedTuple):
    """The complement of a predicate."""

    register: Register


class Vector(NamedTuple):
    """Several operands in braces."""

    parts: tuple


class Pair(NamedTuple):
    """Two destinations, written a|b."""

    parts: tuple


class Address(NamedTuple):
    """[base + offset], and the coordinates of a tensor map where there are any."""

    base: object
    offset: int = 0
    coordinates: tuple = ()


class Instruction(NamedTuple):
    """One instruction.

    Attributes:
        opcode: Its parts, such as ("add", "s32").
        operands: In their order.
        predicate: A Register or Negated that guards it, or None.
        text: As it stands in the file.
        place: Where the source has it, such as "forward.py:53:14".
    """

    opcode: tuple[str, ...]
    operands: tuple
    predicate: object
    text: str
    place: str

    def has(self, *parts: str) -> bool:
        """Whether one of these is a part of the opcode."""
        return any(part in self.opcode for part in parts)


class Program(NamedTuple):
    """One kernel.

    Attributes:
        instructions: In their order.
        labels: The number of the instruction that each label stands before.
        parameters: (kind, name), in their order; kind is such as "u32", or "map" for 128 bytes of a tensor
            map.
        registers: The bits of each register; 1 for a predicate.
    """

    instructions: tuple[Instruction, ...]
    labels: dict[str, int]
    parameters: tuple[tuple[str, str], ...]
    registers: tuple[int, ...]


_BITS = {"pred": 1, "b8": 8, "b16": 16, "b32": 32, "b64": 64, "u32": 32, "f32": 32, "u64": 64, "f64": 64}
_SPECIAL = ("%tid.x", "%ntid.x", "%ctaid.x", "%ctaid.y", "%ctaid.z", "%nctaid.x", "%laneid")
_NUMBER = re.compile(r"-?(0x[0-9a-fA-F]+|\d+)U?")


@functools.lru_cache(maxsize=64)
def parse(ptx: str) -> Program:
    """The one kernel of a PTX file."""
    return _Reader().read(ptx)


class _Reader:
    def __init__(self) -> None:
        self.instructions: list[Instruction] = []
        self.labels: dict[str, int] = {}
        self.names: list[dict[str, Register]] = [{}]  # by scope, the innermost last
        self.families: dict[str, int] = {}  # of .reg .b32 %r<9>: "%r" -> 32
        self.bits: list[int] = []
        self.scopes = 0
        self.scope = [""]
        self.place = ""
        self.tables: dict[str, tuple[str, ...]] = {}  # of brx.idx, by the label that stands before them

    def read(self, ptx: str) -> Program:
        head, _, rest = ptx.partition(".entry")[2].partition("{")
        body = self._without_tables(rest.partition("// -- End function")[0])
        parameters = []
        for declared in re.findall(r"\.param([^,)]*)", head):
            *kind, name = declared.split()
            parameters.append(("map" if "[128]" in name else kind[0].lstrip("."), name.partition("[")[0]))
        for line in body.splitlines():
            self._line(line)
        return Program(tuple(self.instructions), self.labels, tuple(parameters), tuple(self.bits))

    def _without_tables(self, body: str) -> str:
        """The body without its .branchtargets (11.3.2), which are kept: they may go over several lines."""
        declared = re.compile(r"(\S+):\s*\.branchtargets([^;]*);")
        for name, targets in declared.findall(body):
            self.tables[name] = tuple(one.strip() for one in targets.split(","))
        return declared.sub("", body)

    def _line(self, line: str) -> None:
        code, _, comment = line.partition("//")
        if code.strip().startswith(".loc"):
            self.place = comment.split("@")[0].strip()
            return
        for part in re.split(r"(?<=[;:])(?=\s|$)|(?<=;)", code):
            self._statement(part.strip())

    def _statement(self, text: str) -> None:
        while text[:1] in ("{", "}") and text:
            if text[0] == "{":
                self.scopes += 1
                self.scope.append(f"@{self.scopes}")
                self.names.append({})
            elif len(self.scope) > 1:
                self.scope.pop()
                self.names.pop()
            text = text[1:].strip()
        if not text:
            return
        if text.endswith(":"):
            self.labels[self._label(text[:-1], declared=True)] = len(self.instructions)
        elif text.startswith(".reg"):
            self._declare(text.rstrip(";"))
        elif not text.startswith("."):
            self._instruction(text.rstrip(";").strip())

    def _declare(self, text: str) -> None:
        _, kind, *names = text.replace(",", " ").split()
        for name in names:
            family, many, _ = name.partition("<")
            if many:
                self.families[family] = _BITS[kind[1:]]
            else:
                self.names[-1][name] = self._new(_BITS[kind[1:]], name)

    def _new(self, bits: int, name: str) -> Register:
        self.bits.append(bits)
        return Register(len(self.bits) - 1, bits, name)

    def _register(self, name: str) -> Register:
        for names in reversed(self.names):
            if name in names:
                return names[name]
        family = name.rstrip("0123456789")
        if family not in self.families:
            raise UnknownInstruction(f"operand {name} is no register that was declared")
        return self.names[0].setdefault(name, self._new(self.families[family], name))

    def _label(self, name: str, *, declared: bool = False) -> str:
        """A label's full name: those of an inner scope are known there alone."""
        inner = name + self.scope[-1]
        return inner if declared or inner in self.labels else name

    def _instruction(self, text: str) -> None:
        guard, predicate = text, None
        if text.startswith("@"):
            guard, _, text = text[1:].partition(" ")
            predicate = self._register(guard.lstrip("!"))
            predicate = Negated(predicate) if guard.startswith("!") else predicate
        name, _, rest = text.strip().partition(" ")
        if "\t" in name:
            name, _, more = name.partition("\t")
            rest = f"{more} {rest}"
        opcode = tuple(name.split("."))
        if opcode[0] == "bra":
            operands: tuple = (self._target(rest.strip()),)
        elif opcode[0] == "brx":
            index, table = split(rest)
            operands = (self._operand(index), self.tables[table])
        else:
            operands = tuple(self._operand(one) for one in split(rest))
        self.instructions.append(Instruction(opcode, operands, predicate, text.strip(), self.place))

    def _target(self, name: str) -> str:
        # A loop inside an inline-assembly scope branches backward, to a label that is known already.
        return self._label(name)

    def _operand(self, text: str) -> object:
        if text.startswith("{"):
            return Vector(tuple(self._operand(one) for one in split(text.strip("{} "))))
        if text.startswith("["):
            return self._address(text.strip("[] "))
        if "|" in text:
            return Pair(tuple(self._operand(one.strip()) for one in text.split("|")))
        if text.startswith("!"):
            return Negated(self._register(text[1:]))
        if text == "_":
            return None
        if text.startswith("0f"):
            return Immediate(int(text[2:], 16))
        if text.startswith("0d"):
            return Immediate(int(text[2:], 16))
        if _NUMBER.fullmatch(text):
            return Immediate(int(text.rstrip("U"), 0))
        if text in _SPECIAL:
            return Special(text)
        if text == "global_smem":
            return Immediate(0)
        if "_param_" in text:
            return Parameter(text)
        return self._register(text)

    def _address(self, text: str) -> Address:
        base, *rest = split(text)
        coordinates = self._operand(rest[0]).parts if rest else ()
        name, _, offset = base.replace(" ", "").partition("+")
        return Address(self._operand(name), int(offset or "0", 0), coordinates)


def split(text: str) -> list[str]:
    """The operands of a list, whose braces and brackets may hold commas."""
    parts, depth, start = [], 0, 0
    for index, sign in enumerate(text):
        depth += (sign in "{[") - (sign in "}]")
        if sign == "," and depth == 0:
            parts.append(text[start:index].strip())
            start = index + 1
    last = text[start:].strip()
    return [*parts, last] if last else parts
