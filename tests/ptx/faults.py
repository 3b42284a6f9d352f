"""What the interpreter reports."""


class Fault(Exception):  # noqa: N818 - a fault of the program that is run, not of the interpreter
    """The program did what the PTX ISA does not allow, or what has no defined result."""


class UnknownInstruction(NotImplementedError):  # noqa: N818
    """An instruction, or a form of one, that the interpreter does not have; the message is its text."""
