"""From losses to weights: who counts, with which mass, in which order. Nothing here carries a gradient."""
