"""The instructions that are known, each by the first part of its opcode."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable

from tests.ptx.faults import UnknownInstruction
from tests.ptx.machine import Code
from tests.ptx.parse import Instruction, Program

Build = Callable[[Instruction, Program], Code]

_TABLE: dict[str, Build] = {}
_FILES = ("integer", "floating", "moves", "control", "load_store", "copies", "synchronization", "mbarriers")
_FILES += ("matrix", "wgmma", "tma")


def instruction(*names: str) -> Callable[[Build], Build]:
    """Register a function that makes an instruction's code."""

    def register(build: Build) -> Build:
        for name in names:
            assert name not in _TABLE, name
            _TABLE[name] = build
        return build

    return register


def build(one: Instruction, program: Program) -> Code:
    """The code of an instruction.

    Raises:
        UnknownInstruction: Naming it, if there is none, or not of this form.
    """
    _load()
    # Two instructions whose second part makes them other ones.
    name = f"{one.opcode[0]}.bulk" if one.has("bulk") else one.opcode[0]
    if name not in _TABLE:
        raise UnknownInstruction(one.text)
    try:
        return _TABLE[name](one, program)
    except (UnknownInstruction, KeyError, IndexError, AttributeError, ValueError, AssertionError) as error:
        raise UnknownInstruction(f"{one.text} ({type(error).__name__}: {error})") from error


@functools.cache
def _load() -> None:
    """Import every file that registers instructions; they import this one."""
    for name in _FILES:
        importlib.import_module(f"tests.ptx.{name}")
