"""The same numbers, faster: what is computed, and to which tolerance, is in README.md beside this file."""
