"""The table of features as a solver sees it: dense or sparse, with or without a column of ones, never copied."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import sparse

from topkloss.tabular.losses import Array

__all__ = ["Design"]

# Numbers in one block of rows, which is scaled or converted to float64 at a time.
BLOCK = 2**20


class Design:
    """The features X, shape (n, d), followed by a column of ones where there is an intercept.

    Coefficients have the shape (d or d + 1, m), with the intercepts in the last row. Products with float32 features are
    computed in float64, block by block.
    """

    def __init__(self, features: Any, *, intercept: bool) -> None:
        self.features = features
        self.intercept = intercept
        self.sparse = sparse.issparse(features)
        self.rows, self.columns = features.shape
        self.unknowns = self.columns + intercept

    def every(self, step: int) -> Design:
        """A design of every `step`-th row."""
        return Design(self.features[::step], intercept=self.intercept)

    def outputs(self, coefficients: Array) -> Array:
        """The outputs X w + b, shape (n, m)."""
        weights = coefficients[: self.columns]
        if self.sparse or self.features.dtype == np.float64:
            found: Array = self.features @ weights
        else:
            found = np.concatenate([block @ weights for _, block in self._blocks()])
        return found + coefficients[-1] if self.intercept else found

    def adjoint(self, duals: Array) -> Array:
        """The transpose of `outputs`: from duals of shape (n, m) to the shape of the coefficients."""
        if self.sparse or self.features.dtype == np.float64:
            found: Array = self.features.T @ duals
        else:
            found = np.zeros((self.columns, duals.shape[1]))
            for rows, block in self._blocks():
                found += block.T @ duals[rows]
        return np.vstack([found, duals.sum(axis=0)]) if self.intercept else found

    def gram(self, left: Array, right: Array | None = None) -> Array:
        """The sum over the rows x of `left` x x'; only rows where `left` is not 0 are read.

        Args:
            left: Factor of each row, shape (n,), >= 0 without `right`.
            right: Another factor of each row, of any sign.
        """
        if self.sparse:
            return self._sparse_gram(left if right is None else left * right)
        total = np.zeros((self.unknowns, self.unknowns))
        for rows, block in self._blocks():
            factor = left[rows]
            some = factor != 0
            if not some.any():
                continue
            if not some.all():
                block, factor = block[some], factor[some]
            if right is None:
                scaled = block * np.sqrt(factor)[:, None]
                square = scaled.T @ scaled
            else:
                factor = factor * (right[rows] if some.all() else right[rows][some])
                square = block.T @ (block * factor[:, None])
            total[: self.columns, : self.columns] += square
            if self.intercept:
                total[-1, : self.columns] += factor @ block
                total[-1, -1] += factor.sum()
        if self.intercept:
            total[: self.columns, -1] = total[-1, : self.columns]
        return total

    def squared_norms(self) -> Array:
        """The squared length of each row, without the column of ones."""
        if self.sparse:
            return np.asarray(self.features.multiply(self.features).sum(axis=1), dtype=np.float64).ravel()
        return np.concatenate([np.einsum("ij,ij->i", block, block) for _, block in self._blocks()])

    def _blocks(self) -> Iterator[tuple[slice, Array]]:
        step = max(1, BLOCK // max(1, self.columns))
        for start in range(0, self.rows, step):
            rows = slice(start, start + step)
            yield rows, self.features[rows].astype(np.float64, copy=False)

    def _sparse_gram(self, factor: Array) -> Array:
        some = factor != 0
        rows, factor = (self.features, factor) if some.all() else (self.features[some], factor[some])
        weighted = rows.multiply(factor[:, None]).tocsr()
        total = np.zeros((self.unknowns, self.unknowns))
        total[: self.columns, : self.columns] = (rows.T @ weighted).toarray()
        if self.intercept:
            total[-1, : self.columns] = total[: self.columns, -1] = np.asarray(weighted.sum(axis=0)).ravel()
            total[-1, -1] = factor.sum()
        return total
