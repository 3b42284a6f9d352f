"""Tuning: the search for the fastest tiles on a GPU, with its candidates, shapes and rule for a winner."""
