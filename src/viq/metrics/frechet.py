"""The Fréchet distance between two sets of features, as FID has it.

n = pictures, C = features.
"""

from __future__ import annotations

import numpy as np

from viq.core.types import ViqError


def frechet_distance(a_nC: np.ndarray, b_nC: np.ndarray) -> float:
    """|mean difference|^2 + trace(A + B - 2 (A B)^0.5) of Gaussians fitted to both sets (Heusel et
    al. 2017); 0 for equal sets. Biased upwards where n is not far above C, so it compares sets of
    the same n alone.

    Args:
        a_nC, b_nC: at least two rows each, of the same width.

    Raises:
        ViqError: other shapes.
    """
    if a_nC.ndim != 2 or a_nC.shape[1:] != b_nC.shape[1:] or min(len(a_nC), len(b_nC)) < 2:
        raise ViqError(
            f"features of shapes {a_nC.shape} and {b_nC.shape}: give at least two rows each, of "
            "one width"
        )
    a, b = a_nC.astype(np.float64), b_nC.astype(np.float64)
    shift = float(np.square(a.mean(0) - b.mean(0)).sum())
    root_a = _root(np.cov(a, rowvar=False).reshape(a.shape[1], -1))
    cov_b = np.cov(b, rowvar=False).reshape(a.shape[1], -1)
    # The eigenvalues of A B are those of A^0.5 B A^0.5, which is symmetric.
    cross = np.linalg.eigvalsh(root_a @ cov_b @ root_a)
    traces = float(np.square(root_a).sum() + np.trace(cov_b))
    return max(0.0, shift + traces - 2 * float(np.sqrt(np.maximum(cross, 0)).sum()))


def _root(covariance_CC: np.ndarray) -> np.ndarray:
    """The symmetric square root of a covariance."""
    values, vectors = np.linalg.eigh(covariance_CC)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
