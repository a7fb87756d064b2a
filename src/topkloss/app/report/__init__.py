"""Shows finished runs, whose records need no torch, and files of losses: as text and as plots."""
