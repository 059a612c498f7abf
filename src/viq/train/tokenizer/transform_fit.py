"""Fit a transform code (`viq.models.tokenizer.transform_code`) to pictures, in closed form.

    code = fit_transform(windows_of(pictures, 240_000), TransformConfig())

No gradient but for eight angles: eigenvectors, centres of one-dimensional quantizers, and an
alternation of the kind of k-means, in which each class has a basis and tables of its own and each
patch moves to the class with the least error. Ten minutes on one core for 320 classes.

n = windows, T = patches, V, Q, J, l as in the transform code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from viq.core.types import PATCH_SIZE, ViqError
from viq.image.patches import normalize
from viq.models.tokenizer.lapped import LappedFilter
from viq.models.tokenizer.transform_code import ENERGY_FLOOR, TransformCode, TransformConfig
from viq.train.tokenizer.scalar_quantizers import allot, lloyd

WINDOW = 2 * PATCH_SIZE  # px a side: a patch and half of each neighbour
_ROTATION_STEPS = 400
_LEAST = 40  # patches of a class, else it is not fitted anew
_DEAD = 80  # patches below which a class is given half of another
_PRIOR = 80.0  # patches that the covariance of all counts in that of a class
_PROFILE = 40  # values whose magnitudes sort patches into the first classes
_FLAT = 0.25 * 3 * PATCH_SIZE**2 / 127.5**2  # energy of a patch that is nearly of one colour
_FLAT_KEPT = 0.15  # of those; they need no class, and photos of skies and pages are full of them


@dataclass(frozen=True, kw_only=True)
class TransformFitConfig:
    """How long the fit takes, and what it begins from."""

    windows: int = 240_000  # one patch each
    page_ratio: float = 0.18  # of the windows are of pages, charts and print
    rounds: int = 7  # of assigning patches to classes and fitting these
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.rounds, self.windows) < 1 or not 0 <= self.page_ratio <= 1:
            raise ViqError("windows and rounds must be at least 1, page_ratio between 0 and 1")


def windows_of(
    pictures: Sequence[Image.Image],
    count: int,
    *,
    scales: tuple[float, float] = (0.7, 1.8),
    seed: int = 0,
) -> np.ndarray:
    """Random windows (n, 32, 32, 3), uint8, of pictures that are resized at random.

    Args:
        count: n, about; a picture gives windows by its area, so that no pixel is likelier than
            another. Pictures below 32 px a side give none.
        scales: of the resizing, evenly in their logarithm; (1, 1) leaves pictures as they are.
    """
    rng, found = np.random.default_rng(seed), []
    density = count / max(1, sum(picture.width * picture.height for picture in pictures))
    for picture in pictures:
        each = rng.poisson(density * picture.width * picture.height)
        scale = math.exp(rng.uniform(math.log(scales[0]), math.log(scales[1])))
        if scale != 1:
            size = (round(picture.width * scale), round(picture.height * scale))
            picture = picture.resize(
                (max(WINDOW, size[0]), max(WINDOW, size[1])), Image.Resampling.BICUBIC
            )
        pixels = np.asarray(picture.convert("RGB"))
        if min(pixels.shape[:2]) < WINDOW:
            continue
        tops = rng.integers(0, pixels.shape[0] - WINDOW + 1, each)
        lefts = rng.integers(0, pixels.shape[1] - WINDOW + 1, each)
        found += [pixels[y : y + WINDOW, x : x + WINDOW] for y, x in zip(tops, lefts, strict=True)]
    return np.stack(found) if found else np.empty((0, WINDOW, WINDOW, 3), np.uint8)


def fit_transform(
    windows: np.ndarray,
    config: TransformConfig,
    fit: TransformFitConfig | None = None,
    progress: Callable[[dict[str, float]], None] = lambda record: None,
) -> TransformCode:
    """A transform code fitted to windows (n, 32, 32, 3), uint8; deterministic on one machine.

    Args:
        progress: called after each round with its number, the PSNR of the windows' patches in dB,
            and how many classes were given new patches.

    Raises:
        ViqError: too few windows for so many classes.
    """
    fit = fit or TransformFitConfig()
    if len(windows) < (least := _DEAD * config.classes):
        raise ViqError(f"{len(windows):,} windows: {config.classes} classes need {least:,}")
    generator = torch.Generator().manual_seed(fit.seed)
    code = TransformCode(config)
    code.lapped.get_buffer("rotation").copy_(fit_rotation(windows, generator))
    patches_TD = filtered_patches(windows, code.lapped)
    centre = patches_TD.mean()
    code.get_buffer("centre").copy_(centre)
    patches_TD -= centre
    _fit_mean(code, patches_TD, generator)
    values_TV, rest_T = _shared_basis(code, patches_TD)
    del patches_TD
    kept = (rest_T > _FLAT) | (torch.rand(len(rest_T), generator=generator) < _FLAT_KEPT)
    classes = _Classes(code, values_TV[kept], rest_T[kept], generator)
    for number in range(fit.rounds):
        classes.fit()
        psnr, moved = classes.assign(split=number + 1 < fit.rounds)
        progress({"round": number + 1, "rounds": fit.rounds, "psnr": psnr, "moved": moved})
    classes.write()
    return code


def fit_rotation(windows: np.ndarray, generator: torch.Generator) -> Tensor:
    """The orthogonal (8, 8) of the lapped filter: what leaves least energy outside of the first
    four and six principal directions of rows and columns of the windows' luma."""
    chosen = torch.randperm(len(windows), generator=generator)[:20_000].numpy()
    luma = torch.from_numpy(windows[chosen] @ np.array([0.299, 0.587, 0.114])).float()
    lines = torch.cat([luma[:, ::5].flatten(0, 1), luma.mT[:, ::5].flatten(0, 1)])
    lines = lines - lines.mean()
    covariance = lines.T @ lines / len(lines)
    lapped, half = LappedFilter(), PATCH_SIZE // 2
    angles = torch.zeros(half, half, requires_grad=True)
    optimizer = torch.optim.Adam([angles], lr=0.02)
    total = covariance[half:-half, half:-half].trace()
    for _ in range(_ROTATION_STEPS):
        lapped.rotation = torch.matrix_exp(angles - angles.T)
        matrix = _window_matrix(lapped)
        energies = torch.linalg.eigvalsh(matrix @ covariance @ matrix.T).flip(0)
        loss = (energies[6:].sum() + energies[4:].sum()) / total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return torch.matrix_exp(angles - angles.T).detach()


def filtered_patches(windows: np.ndarray, lapped: LappedFilter, group: int = 4096) -> Tensor:
    """The patches (n, D) in the middle of windows (n, 32, 32, 3), filtered at their borders."""
    matrix = _window_matrix(lapped).detach()
    parts = [
        (matrix @ normalize(windows[start : start + group]) @ matrix.T).flatten(1)
        for start in range(0, len(windows), group)
    ]
    return torch.cat(parts)


def _window_matrix(lapped: LappedFilter) -> Tensor:
    """(16, 32): what the filters at both borders of the middle patch make of a line of pixels."""
    border, rest = lapped.matrix(), torch.eye(PATCH_SIZE)
    both = torch.block_diag(border, rest), torch.block_diag(rest, border)
    return (both[1] @ both[0])[PATCH_SIZE // 2 : -PATCH_SIZE // 2]


def _fit_mean(code: TransformCode, patches_TD: Tensor, generator: torch.Generator) -> None:
    """The two digits of the mean; patches lose what these say of it."""
    flat_D = torch.full((patches_TD.shape[1],), patches_TD.shape[1] ** -0.5)
    mean_T = patches_TD @ flat_D
    coarse, fine = code.config.means
    centres = lloyd(mean_T, coarse, generator)
    nearest_T = torch.bucketize(mean_T, (centres[1:] + centres[:-1]) / 2)
    rest_T = mean_T - centres[nearest_T]
    tables = [lloyd(rest_T[nearest_T == k], fine, generator) for k in range(coarse)]
    code.get_buffer("coarse").copy_(centres)
    code.get_buffer("fine").copy_(torch.stack(tables))


def _shared_basis(code: TransformCode, patches_TD: Tensor) -> tuple[Tensor, Tensor]:
    """The basis of all classes, and of each patch its values (T, V) and its energy (T,) without
    what the digits of the mean say."""
    width, count = patches_TD.shape[1], code.config.basis - 1
    flat_D = torch.full((width,), width**-0.5)
    mean_T = patches_TD @ flat_D
    patches_TD -= mean_T[:, None] * flat_D
    directions = torch.linalg.eigh(patches_TD.T @ patches_TD)[1].flip(1)[:, :count]
    code.get_buffer("basis").copy_(torch.cat([directions, flat_D[:, None]], 1))
    coarse_T, fine_T = code.mean_digits(mean_T)
    said_T = code.get_buffer("coarse")[coarse_T] + code.get_buffer("fine")[coarse_T, fine_T]
    rest_T = mean_T - said_T
    values_TV = torch.cat([patches_TD @ directions, rest_T[:, None]], 1)
    return values_TV, patches_TD.square().sum(1) + rest_T.square()


class _Classes:
    """Bases, tables and members of all classes while they are fitted."""

    def __init__(
        self, code: TransformCode, values_TV: Tensor, energy_T: Tensor, generator: torch.Generator
    ) -> None:
        self.code, self.generator = code, generator
        self.log_T, order = (energy_T + ENERGY_FLOOR).log().sort()
        self.values_TV, self.energy_T = values_TV[order], energy_T[order]
        self.covariance = self.values_TV.T @ self.values_TV / len(order)
        self.members_T = self._first_members()
        self.fitted: list[_Class | None] = [None] * code.config.classes

    def _first_members(self) -> Tensor:
        """By k-means on the logarithms of the magnitudes of the first values."""
        count = self.code.config.classes
        profiles = (self.values_TV[:, :_PROFILE].abs() + 6 / 127.5).log()
        sample = profiles[torch.randperm(len(profiles), generator=self.generator)[:40_000]]
        centres = sample[torch.randperm(len(sample), generator=self.generator)[:count]]
        for _ in range(5):
            nearest = torch.cdist(sample, centres).argmin(1)
            sizes = torch.bincount(nearest, minlength=count)
            sums = torch.zeros_like(centres).index_add_(0, nearest, sample)
            centres = sums / sizes.clamp_min(1)[:, None]
            empty = (sizes < 10).nonzero()[:, 0]
            others = torch.randperm(len(sample), generator=self.generator)[: len(empty)]
            centres[empty] = sample[others]
        return torch.cat([torch.cdist(x, centres).argmin(1) for x in profiles.split(20_000)])

    def fit(self) -> None:
        """Basis, tables and window of each class, from its members."""
        for number in range(len(self.fitted)):
            chosen = self.members_T == number
            values_TV = self.values_TV[chosen]
            if len(values_TV) < _LEAST:
                continue
            covariance = values_TV.T @ values_TV
            prior = self.covariance * covariance.trace() / len(values_TV) / self.covariance.trace()
            covariance = (covariance + _PRIOR * prior) / (len(values_TV) + _PRIOR)
            logs = self.log_T[chosen]
            low, high = torch.quantile(logs, logs.new_tensor([0.004, 0.996])).tolist()
            self.fitted[number] = _fit_class(
                values_TV, covariance, (low - 0.12, high + 0.12), self.code.config, self.generator
            )
        known = [c for c in self.fitted if c is not None]
        # The classes at both ends take what lies beyond all windows.
        lowest, highest = (
            min(known, key=lambda c: c.window[0]),
            max(known, key=lambda c: c.window[1]),
        )
        lowest.window = (-1e9, lowest.window[1])
        highest.window = (highest.window[0], 1e9)

    def assign(self, *, split: bool) -> tuple[float, int]:
        """Give each patch to the class with the least error; PSNR in dB, and classes that were
        given half of another, if `split`, because hardly a patch took them."""
        best_T = torch.full((len(self.values_TV),), torch.inf)
        self.members_T.zero_()
        for number, fitted in enumerate(self.fitted):
            if fitted is None:
                continue
            start, stop = torch.searchsorted(self.log_T, torch.tensor(fitted.window)).tolist()
            if stop <= start:
                continue
            error = fitted.error(self.values_TV[start:stop])
            better = error < best_T[start:stop]
            best_T[start:stop] = torch.where(better, error, best_T[start:stop])
            self.members_T[start:stop][better] = number
        best_T = torch.where(best_T.isinf(), 0.0, best_T) + self.energy_T
        width = 3 * PATCH_SIZE**2
        psnr = 10 * math.log10(4 * width / float(best_T.mean()))
        return psnr, self._split(best_T) if split else 0

    def _split(self, error_T: Tensor) -> int:
        """Halve the classes with the largest errors, for those that are hardly used."""
        count = len(self.fitted)
        dead = (torch.bincount(self.members_T, minlength=count) < _DEAD).nonzero()[:, 0]
        totals = torch.zeros(count).index_add_(0, self.members_T, error_T)
        for number, large in zip(
            dead.tolist(), totals.topk(len(dead)).indices.tolist(), strict=True
        ):
            members = (self.members_T == large).nonzero()[:, 0]
            fitted = self.fitted[large]
            if fitted is not None and len(members) >= 2 * _LEAST:
                along = self.values_TV[members] @ fitted.directions_VQ[:, 0]
                self.members_T[members[along > along.median()]] = number
        return len(dead)

    def write(self) -> None:
        """Into the buffers of the code; a class without members is a copy of the first."""
        spare = next(c for c in self.fitted if c is not None)
        for number, fitted in enumerate(self.fitted):
            members = self.values_TV[self.members_T == number]
            (fitted or spare).write(self.code, number, members)


@dataclass
class _Class:
    """One class: directions (V, q), a table of levels for each, radices of each code."""

    directions_VQ: Tensor
    tables: list[Tensor]
    radices: list[list[int]]
    window: tuple[float, float]

    def error(self, values_TV: Tensor) -> Tensor:
        """Squared error (T,) less the energy of the values."""
        error = torch.zeros(len(values_TV))
        for z_T, table in zip((values_TV @ self.directions_VQ).T, self.tables, strict=True):
            z_T = z_T.contiguous()
            picked = table[torch.bucketize(z_T, (table[1:] + table[:-1]) / 2)]
            error += (picked - z_T).square() - z_T.square()
        return error

    def short_table(self, coefficient: int, values_TV: Tensor) -> Tensor:
        """Levels of a coefficient in three codes: the mean of the values that share a level there;
        where there are none, that of the levels which it stands for."""
        table, radix = self.tables[coefficient], self.radices[-1][coefficient]
        means = table.unflatten(0, (-1, radix)).mean(1)
        z_T = (values_TV @ self.directions_VQ[:, coefficient]).contiguous()
        cells_T = torch.bucketize(z_T, (table[1:] + table[:-1]) / 2) // radix
        counts = torch.bincount(cells_T, minlength=len(means))
        sums = torch.zeros_like(means).index_add_(0, cells_T, z_T)
        return torch.where(counts > 0, sums / counts.clamp_min(1), means).cummax(0).values

    def write(self, code: TransformCode, number: int, members_TV: Tensor) -> None:
        """Into the buffers of a code, as its class of this number."""
        count = self.directions_VQ.shape[1]
        code.get_buffer("directions")[number, :, :count] = self.directions_VQ
        for coefficient, table in enumerate(self.tables):
            short = self.short_table(coefficient, members_TV)
            for name, levels in (("values", table), ("short_values", short)):
                row = code.get_buffer(name)[number, coefficient]
                row[: len(levels)] = levels
                row[len(levels) :] = levels[-1]
        code.get_buffer("radices")[number, :, :count] = torch.tensor(self.radices).float()
        code.get_buffer("window")[number] = torch.tensor(self.window)


def _fit_class(
    values_TV: Tensor,
    covariance_VV: Tensor,
    window: tuple[float, float],
    config: TransformConfig,
    generator: torch.Generator,
) -> _Class:
    energies, directions = torch.linalg.eigh(covariance_VV)
    energies, directions = energies.flip(0), directions.flip(1)[:, : config.coefficients]
    radices = allot(energies[: config.coefficients].tolist(), config)
    levels = [math.prod(column) for column in zip(*radices, strict=True)]
    kept = [i for i, count in enumerate(levels) if count > 1]
    directions = directions[:, kept].contiguous()
    coefficients_TQ = values_TV @ directions
    tables = [lloyd(coefficients_TQ[:, i], levels[k], generator) for i, k in enumerate(kept)]
    return _Class(directions, tables, [[row[k] for k in kept] for row in radices], window)
