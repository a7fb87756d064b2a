"""The command: trains on images or tables, and says what came of it."""
