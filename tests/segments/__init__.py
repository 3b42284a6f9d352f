"""The formula for rows that choose their operands."""
