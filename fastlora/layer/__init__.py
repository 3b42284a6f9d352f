"""One layer: its frozen weight, its adapters, and what changes it."""
