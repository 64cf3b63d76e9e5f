"""Codes by latent, with the true classes of every token: what single latents are scored on."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import scipy.sparse

from lab.measures.reading import Tokens
from lab.measures.truth.ranking import F1, moving_average, score_column, score_columns
from tsae.sequences import LabelSpec


class Variable(NamedTuple):
    """One true binary variable: a class of a label against the rest of the tokens."""

    scale: str
    label: str
    name: str

    @property
    def group(self) -> str:
        """``scale:label=class``."""
        return f"{self.scale}:{self.label}={self.name}"


def variables(specs: Mapping[str, LabelSpec]) -> list[Variable]:
    """All (label, class) pairs in the labels' order. Raises ValueError when there are none."""
    found = [Variable(s.scale, name, c) for name, s in specs.items() for c in s.classes]
    if not found:
        raise ValueError("the store has no labels, so no known variable can be read")
    return found


def numbered(t: Tokens, specs: Mapping[str, LabelSpec]) -> np.ndarray:
    """[N, L] int16: each token's class by label, numbered over all labels; −1 none."""
    columns, offset = [], 0
    for name, spec in specs.items():
        label_N = t.labels[name].cpu().numpy()
        columns.append(np.where(label_N >= 0, label_N + offset, -1))
        offset += len(spec.classes)
    return np.stack(columns, 1).astype(np.int16)


class Codes:
    """N tokens of a split: their codes as columns, their classes, documents and pieces.

    Tokens are given by :meth:`add`; whatever is asked for first ends that. Raises ValueError when
    there are none.
    """

    def __init__(self, specs: Mapping[str, LabelSpec], tokens: Iterable[Tokens] = ()):
        self.specs, self.n_classes = specs, len(variables(specs))
        self.n = self.n_latents = 0
        self._parts: list[tuple[np.ndarray, ...]] = []
        for t in tokens:
            self.add(t)

    def add(self, t: Tokens) -> None:
        """Take in more tokens, in reading order."""
        z_NF = t.z_NF.detach().cpu().numpy()
        place = np.flatnonzero(z_NF != 0)
        cells = z_NF.ravel()[place], *np.divmod(place + self.n * z_NF.shape[1], z_NF.shape[1])
        first_N = np.diff(t.piece_N.cpu().numpy(), prepend=-1) > 0
        self._parts.append((*cells, t.doc_N.cpu().numpy(), first_N, numbered(t, self.specs)))
        self.n, self.n_latents = self.n + len(z_NF), z_NF.shape[1]

    @cached_property
    def _whole(self) -> tuple[np.ndarray, ...]:
        if not self.n:
            raise ValueError("no valid token was read; ask for more tokens")
        whole = tuple(np.concatenate(part) for part in zip(*self._parts, strict=True))
        self._parts = []
        return whole

    @cached_property
    def z_NF(self) -> scipy.sparse.csc_array:
        """The codes, columns in reading order."""
        values, row, column, *_ = self._whole
        z_NF = scipy.sparse.csc_array((values, (row, column)), shape=(self.n, self.n_latents))
        z_NF.sort_indices()
        return z_NF

    @cached_property
    def doc_N(self) -> np.ndarray:
        """Document ids."""
        return self._whole[3]

    @cached_property
    def first_N(self) -> np.ndarray:
        """Where pieces begin."""
        return self._whole[4]

    @cached_property
    def class_NL(self) -> np.ndarray:
        """Classes by label, numbered over all labels; −1 none."""
        return self._whole[5]

    @cached_property
    def n_C(self) -> np.ndarray:
        """Tokens of each class."""
        counted = self.class_NL[self.class_NL >= 0]
        return np.bincount(counted, minlength=self.n_classes).astype(float)

    def truth(self, c: int) -> np.ndarray:
        """[N] bool: the tokens of class ``c``."""
        return (self.class_NL == c).any(1)

    def entries(self, latent: int) -> tuple[np.ndarray, np.ndarray]:
        """The values of a latent and the tokens that have them."""
        part = slice(*self.z_NF.indptr[latent : latent + 2])
        return self.z_NF.data[part], self.z_NF.indices[part]

    def column(self, latent: int, decay: float = 0.0) -> np.ndarray:
        """[N] values of a latent, through an EMA where ``decay`` is above 0."""
        values, tokens = self.entries(latent)
        out_N = np.zeros(self.n, np.float32)
        if decay:
            moving_average(values, tokens, self.first_N, decay, out_N)
        else:
            out_N[tokens] = values
        return out_N

    @cached_property
    def _falling(self) -> tuple[np.ndarray, np.ndarray]:
        """Values and tokens of each column, largest first; only those above 0 are ranked."""
        column = np.repeat(np.arange(self.n_latents), np.diff(self.z_NF.indptr))
        order = np.lexsort((-self.z_NF.data, column))
        return self.z_NF.data[order], self.z_NF.indices[order]

    def scores(self, shift: int = 0) -> np.ndarray:
        """[F, 4, C] AP, AUROC, best F1 and its threshold of every latent for every class, with the
        classes moved ``shift`` tokens in a circle."""
        out = np.zeros((self.n_latents, 4, self.n_classes))
        score_columns(self.z_NF.indptr, *self._falling, self.class_NL, shift, self.n_C, out)
        return out

    def averaged_scores(self, decay: float) -> np.ndarray:
        """:meth:`scores` of the codes through an EMA."""
        out = np.zeros((self.n_latents, 4, self.n_classes))
        for latent in range(self.n_latents):
            v_N = self.column(latent, decay)
            order = np.argsort(-v_N)[: np.count_nonzero(v_N)]
            score_column(v_N[order], order, self.class_NL, 0, self.n_C, out[latent])
        return out

    def shifted_scores(
        self, latent_MC: np.ndarray, threshold_C: np.ndarray, shift: int
    ) -> np.ndarray:
        """[3, C] :meth:`scores` of one latent a metric and class, F1 at a threshold chosen before."""
        scores_F4C = self.scores(shift)
        value_MC = np.take_along_axis(scores_F4C[:, :3], latent_MC[None], 0)[0]
        class_NL = np.roll(self.class_NL, -shift, 0)
        for c, (latent, threshold) in enumerate(zip(latent_MC[F1], threshold_C, strict=True)):
            values, tokens = self.entries(latent)
            tokens = tokens[values >= threshold] if threshold > 0 else np.arange(self.n)
            tp = (class_NL[tokens] == c).sum()
            value_MC[F1, c] = 2 * tp / max(len(tokens) + self.n_C[c], 1)
        return value_MC

    def correlations(self) -> np.ndarray:
        """[F, C] Pearson r of every latent with every class; 0 where one of them is constant."""
        row, label = np.nonzero(self.class_NL >= 0)
        cells = (np.ones(len(row)), (row, self.class_NL[row, label]))
        n, y_NC = self.n, scipy.sparse.csr_array(cells, shape=(self.n, self.n_classes))
        zy = (self.z_NF.T @ y_NC).toarray().astype(float)
        z_F, z2_F = self.z_NF.sum(0), self.z_NF.power(2).sum(0)
        z_spread, y_spread = n * z2_F - z_F**2, n * self.n_C - self.n_C**2
        # relative, so that neither scale nor rounding turns a constant into a correlation
        spread = np.where(z_spread > 1e-6 * n * z2_F, z_spread, 0)[:, None] * y_spread
        gap = n * zy - z_F[:, None] * self.n_C
        return np.divide(gap, np.sqrt(spread), out=np.zeros_like(zy), where=spread > 0)


def shifts(codes: Sequence[Codes], count: int, seed: int) -> Iterator[tuple[int, ...]]:
    """Offsets, one for each of ``codes``, by which classes are moved against codes: none shorter
    than four of the longest documents, so that nothing slow stays in its place."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        offsets = []
        for part in codes:
            longest = np.unique(part.doc_N, return_counts=True)[1].max()
            least = min(4 * longest, part.n // 4)
            offsets.append(int(rng.integers(least, part.n - least + 1)))
        yield tuple(offsets)
