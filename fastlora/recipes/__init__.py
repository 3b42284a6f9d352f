"""Whole jobs, from data to picture, and the small data they ship."""
