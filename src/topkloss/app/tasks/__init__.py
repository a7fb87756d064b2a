"""What can be trained: a folder each, with the same verbs."""
