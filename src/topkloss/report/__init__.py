"""Reads the records of finished runs and shows them; nothing here needs torch."""
