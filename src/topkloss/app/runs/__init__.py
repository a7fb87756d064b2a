"""The folder of a run, the same for every task."""
