"""Classifiers on one vector a picture: logistic regression and nearest neighbours.

n = pictures, k = classes, T = patches of a picture, C = width of features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBOURS = 10
_TEMPERATURE = 0.07  # of the votes of neighbours, as DINO's evaluation has it


def mean_and_deviation(features_TC: Tensor) -> Tensor:
    """The vector (2C,) of a picture: mean and standard deviation over its patches."""
    return torch.cat([features_TC.mean(0), features_TC.std(0, correction=0)])


def logistic(x_nC: Tensor, y_n: Tensor, test_nC: Tensor, classes: int) -> Tensor:
    """Classes (n,) of `test_nC` by a multinomial logistic regression, lightly regularised."""
    mean, std = x_nC.mean(0), x_nC.std(0) + 1e-6
    x_nC, test_nC = (x_nC - mean) / std, (test_nC - mean) / std
    weight = torch.zeros(x_nC.shape[1], classes, requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(x_nC @ weight + bias, y_n) + 1e-2 * weight.square().sum() / classes
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)
    return (test_nC @ weight.detach() + bias.detach()).argmax(1)


def nearest(x_nC: Tensor, y_n: Tensor, test_nC: Tensor, classes: int) -> Tensor:
    """Classes (n,) of `test_nC` by the votes of the nearest `NEIGHBOURS` vectors of `x_nC`.

    Near is of large cosine similarity; a vote weighs exp(similarity / 0.07), so the nearest decides
    between classes of as many votes.
    """
    similar_nn = F.normalize(test_nC, dim=1) @ F.normalize(x_nC, dim=1).T
    top = similar_nn.topk(min(NEIGHBOURS, len(x_nC)), dim=1)
    weights = ((top.values - 1) / _TEMPERATURE).exp()
    votes_nk = torch.zeros(len(test_nC), classes).scatter_add_(1, y_n[top.indices], weights)
    return votes_nk.argmax(1)


def whitened(x_nC: Tensor, train_n: Tensor) -> Tensor:
    """Features in the principal directions of the training photos, of unit variance each; small
    directions are not blown up beyond a hundredth of the largest."""
    centred = x_nC - x_nC[train_n].mean(0)
    _, scales, directions = torch.linalg.svd(centred[train_n], full_matrices=False)
    scales = scales / int(train_n.sum()) ** 0.5
    return centred @ directions.T / (scales + 0.01 * scales[0])
