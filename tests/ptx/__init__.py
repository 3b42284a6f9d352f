"""A PTX interpreter in numpy: runs what Triton compiles for a GPU on any machine, and finds races.

`parse.py` reads the text, `scheduler.py` runs it in an order that a seed decides, one file for each kind of
instruction says what it does, and `clocks.py` knows what happens before what. Sections in the docstrings
are those of the PTX ISA, version 9.
"""
