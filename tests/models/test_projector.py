"""The projector against an independent, naive reading of its formula, window by window."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from viq.core.types import Grid, grid_of, language_tokens
from viq.models.language.projector import MergeProjector, ProjectorConfig, Whitener

GRIDS: list[Grid] = [(4, 4), (1, 1), (3, 5), (2, 7), (8, 1), (5, 4)]


def projector(merge: int, features: int = 6, width: int = 5) -> MergeProjector:
    torch.manual_seed(merge)
    return MergeProjector(
        ProjectorConfig(features=features, width=width, merge_size=merge)
    ).double()


def features(grids: list[Grid], width: int = 6) -> Tensor:
    return torch.randn(sum(r * c for r, c in grids), width, dtype=torch.float64)


def one_window(model: MergeProjector, members: list[Tensor]) -> Tensor:
    """Linear; MLP on each member beside the mean; softmax over members; weighted sum; GELU;
    Linear."""
    projected = [model.project_in(member) for member in members]
    summed = projected[0]
    if model.config.merge_size > 1:
        mean = torch.stack(projected).mean(0)
        logits = []
        for x in projected:
            hidden = F.linear(torch.cat([x, mean]), model.weigh.fc1.weight, model.weigh.fc1.bias)
            hidden = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
            logits.append(F.linear(hidden, model.weigh.fc2.weight, model.weigh.fc2.bias))
        powers = torch.stack(logits).exp()
        summed = (torch.stack(projected) * powers / powers.sum(0)).sum(0)
    return model.project_out(0.5 * summed * (1 + torch.erf(summed / 2**0.5)))


def naive(model: MergeProjector, image: Tensor, grid: Grid) -> Tensor:
    """Tokens of one image: begin, rows of windows with a mark after each, end."""
    (rows, cols), merge = grid, model.config.merge_size
    lines: list[Tensor] = [model.begin]
    for top in range(0, rows, merge):
        for left in range(0, cols, merge):
            places = itertools.product(
                range(top, min(top + merge, rows)), range(left, min(left + merge, cols))
            )
            lines.append(one_window(model, [image[r * cols + c] for r, c in places]))
        lines.append(model.newline)
    return torch.stack([*lines, model.end])


@pytest.mark.parametrize("merge", [1, 2, 4])
def test_it_is_the_formula_on_whole_and_odd_grids(merge: int) -> None:
    model, tokens = projector(merge), features(GRIDS)
    found = model(tokens, GRIDS)
    start = 0
    for grid, image in zip(GRIDS, found, strict=True):
        count = grid[0] * grid[1]
        expected = naive(model, tokens[start : start + count], grid)
        torch.testing.assert_close(image, expected)
        assert len(image) == language_tokens(grid, merge)
        start += count


@pytest.mark.parametrize(("side", "tokens"), [(384, 158), (768, 602)])
def test_token_counts_of_the_paper(side: int, tokens: int) -> None:
    grid = grid_of((side, side))
    (image,) = projector(2)(features([grid]), [grid])
    assert len(image) == language_tokens(grid) == tokens


def test_border_windows_use_their_members_only() -> None:
    model, grids = projector(2), [(3, 3), (2, 2)]
    tokens = features(grids).requires_grad_()
    merged = model.merged(tokens, grids)
    assert len(merged) == 4 + 1
    for window, members in enumerate([[0, 1, 3, 4], [2, 5], [6, 7], [8], [9, 10, 11, 12]]):
        (gradient,) = torch.autograd.grad(merged[window].sum(), tokens, retain_graph=True)
        assert gradient.isfinite().all()
        assert gradient.abs().sum(1).nonzero().flatten().tolist() == members


def test_every_weight_learns_and_from_finite_gradients() -> None:
    model = projector(4)
    torch.cat(model(features(GRIDS), GRIDS)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        if name != "weigh.fc2.bias":  # shifts all logits of a channel alike
            assert parameter.grad.abs().sum() > 1e-6, name


def test_other_windows_are_refused() -> None:
    with pytest.raises(ValueError, match="merge_size is 3: use 1, 2 or 4"):
        MergeProjector(ProjectorConfig(features=4, width=4, merge_size=3))


def test_whitened_features_have_covariance_one() -> None:
    torch.manual_seed(0)
    turn = torch.linalg.qr(torch.randn(3, 3)).Q
    mixed = torch.randn(500, 3) * torch.tensor([30.0, 2.0, 0.2]) @ turn + 7
    whitener = Whitener(3)
    assert torch.equal(whitener(mixed), mixed)
    whitener.fit(mixed)
    white = whitener(mixed)
    torch.testing.assert_close(white.mean(0), torch.zeros(3), atol=1e-3, rtol=0)
    large = torch.linalg.eigvalsh(torch.cov(white.T))
    assert large[1:].tolist() == pytest.approx([1, 1], abs=1e-2)
    assert 0.02 < large[0] < 0.1  # 0.04 / 0.9: a direction without weight is not blown up
    whitener.fit(torch.ones(4, 3))
    assert torch.equal(whitener(torch.ones(1, 3)), torch.zeros(1, 3))
    whitener.fit(mixed)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(whitener(mixed), white)
    # The projector reads what the whitener gives, and keeps it in its state.
    plain, whole = (
        MergeProjector(ProjectorConfig(features=3, width=4, whiten=w)) for w in (False, True)
    )
    whole.load_state_dict(plain.state_dict(), strict=False)
    whole.whitener.load_state_dict(whitener.state_dict())
    torch.testing.assert_close(whole.merged(mixed[:6], [(2, 3)]), plain.merged(white[:6], [(2, 3)]))
    assert {"whitener.center_C", "whitener.map_CC"} == set(whole.state_dict()) - set(
        plain.state_dict()
    )


def test_positions_tell_places_apart_and_sizes_too() -> None:
    """The same patch everywhere: without positions all its tokens are alike."""
    torch.manual_seed(0)
    config = ProjectorConfig(features=6, width=5, positions=True)
    model, plain = MergeProjector(config), projector(2).float()
    grids: list[Grid] = [(4, 6), (6, 4), (8, 8)]
    patches = features([(1, 1)]).float().expand(sum(r * c for r, c in grids), -1)
    for one, different in ((model, True), (plain, False)):
        found = torch.cat(model_tokens(one, patches, grids))
        assert (len(found.unique(dim=0)) == len(found)) == different
    assert set(model.state_dict()) - set(plain.state_dict()) == {"place.weight"}


def model_tokens(model: MergeProjector, patches: Tensor, grids: list[Grid]) -> list[Tensor]:
    """Tokens of windows alone, without marks."""
    kept = []
    for grid, image in zip(grids, model(patches, grids), strict=True):
        rows, cols = (-(-side // 2) for side in grid)
        kept.append(image[1:-1].view(rows, cols + 1, -1)[:, :-1].flatten(0, 1))
    return kept
