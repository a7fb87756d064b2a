"""A table of features: rows of numbers and words with one label each, fitted by `topkloss.tabular`."""
