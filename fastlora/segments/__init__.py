"""Rows that choose their operands: each run of rows is multiplied by its own W, A and B.

An expert has its own W, A and B; an adapter of a batch with several has its own A and B.
"""
