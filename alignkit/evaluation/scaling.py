"""How gold depends on the distance from the patient: the forms of Gao et al. (2210.10760), their fits and their peaks.

With d = sqrt(KL), gold gained is d (alpha - beta d) for best-of-n and d (alpha - beta log d) for RL. Both are linear in
alpha and beta, so they are fit by least squares; the line alpha d is what is left without over-optimization.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from alignkit.errors import AlignkitError, check_choice
from alignkit.intervals import resampled

#: What bends the line: f(d) of each form.
FORMS = {"line": np.zeros_like, "best-of-n": lambda d: d, "rl": lambda d: np.log(np.where(d > 0, d, 1.0))}
ROUNDING = 1e-9  # a KL of nothing may come out this far below 0


@dataclass(frozen=True)
class Fit:
    """One fitted form: gain at d is d (alpha - beta f(d)), f = 0, d or log d. `rmse`: on the points it was fit to."""

    form: str
    alpha: float
    beta: float
    rmse: float

    def gain(self, kl: np.ndarray | float) -> np.ndarray:
        """Predicted gain at this KL (nats)."""
        return _terms(kl, self.form) @ np.array([self.alpha, self.beta])

    @property
    def peak_kl(self) -> float:
        """KL of the highest gain, infinite if the form never turns down.

        d* = alpha / (2 beta) for best-of-n, exp(alpha / beta - 1) for RL; KL = d*^2.
        """
        if self.beta <= 0 or self.form == "line":
            return float("inf")
        if self.form == "best-of-n":
            return max(self.alpha, 0.0) ** 2 / (4 * self.beta**2)
        return float(np.exp(2 * min(self.alpha / self.beta - 1, 300.0)))

    @property
    def peak_gain(self) -> float:
        """The highest gain: alpha^2 / (4 beta) for best-of-n, beta d* for RL."""
        return float(self.gain(self.peak_kl)) if np.isfinite(self.peak_kl) else float("inf")


def _terms(kl: np.ndarray | float, form: str) -> np.ndarray:
    """The columns that alpha and beta multiply, shape (..., 2)."""
    check_choice("fit_form", "form", form, FORMS)
    d = np.sqrt(np.maximum(np.asarray(kl, dtype=float), 0.0))
    return np.stack([d, -d * FORMS[form](d)], axis=-1)


def _checked(kl, gain, least: int) -> tuple[np.ndarray, np.ndarray]:
    kl, gain = np.asarray(kl, dtype=float), np.asarray(gain, dtype=float)
    if kl.shape != gain.shape or kl.ndim != 1:
        raise AlignkitError(f"kl and gain must be two lists of one length; got shapes {kl.shape} and {gain.shape}")
    bad = np.flatnonzero(~(np.isfinite(kl) & np.isfinite(gain) & (kl >= -ROUNDING)))
    if len(bad):
        raise AlignkitError(f"point {bad[0]}: kl {kl[bad[0]]} and gain {gain[bad[0]]}; both must be finite, kl >= 0")
    kl = np.maximum(kl, 0.0)
    if len(np.unique(kl[kl > 0])) < least:
        raise AlignkitError(f"{len(np.unique(kl[kl > 0]))} distances above 0 are too few for this fit; give {least}")
    return kl, gain


def fit_form(kl, gain, form: str = "best-of-n") -> Fit:
    """Least squares of one form on points (kl, gain), each of shape (N,); gain is over the untreated patient's."""
    kl, gain = _checked(kl, gain, least=1 if form == "line" else 2)
    terms = _terms(kl, form)
    found, *_ = np.linalg.lstsq(terms, gain, rcond=None)  # a column of zeros, as the line's second, gets a zero
    return Fit(form, *map(float, found), rmse=_rms(terms @ found - gain))


def _rms(errors: np.ndarray) -> float:
    return float(np.sqrt(np.mean(errors**2)))


def compare_forms(kl, gain, upto: float) -> pd.DataFrame:
    """Each form fit to the points with kl <= upto and asked about the others: a row a form, columns alpha, beta,
    `rmse` (of the fit), `beyond` (root mean squared error of the prediction), `peak_kl`."""
    kl, gain = _checked(kl, gain, least=1)
    near = kl <= upto
    if near.all() or not near.any():
        raise AlignkitError(f"compare_forms: no point on one side of {upto:g} nats; the points span {kl.min():.3g} to "
                            f"{kl.max():.3g}")  # fmt: skip
    rows = {}
    for form in FORMS:
        fit = fit_form(kl[near], gain[near], form)
        beyond = _rms(fit.gain(kl[~near]) - gain[~near])
        rows[form] = {"alpha": fit.alpha, "beta": fit.beta, "rmse": fit.rmse, "beyond": beyond, "peak_kl": fit.peak_kl}
    return pd.DataFrame(rows).T


def bootstrap_fit(kl: np.ndarray, gain: np.ndarray, form: str, resamples: int = 500, seed: int = 0) -> pd.DataFrame:
    """A form fit to the mean over rows (prompts, or seeds), with 95 % percentile intervals from resampled rows.

    kl and gain: (rows, points). A row a quantity (alpha, beta, peak_kl, peak_gain), columns value, low, high.
    """
    kl, gain = np.atleast_2d(np.asarray(kl, dtype=float)), np.atleast_2d(np.asarray(gain, dtype=float))
    if kl.shape != gain.shape or len(kl) < 2:
        raise AlignkitError(f"bootstrap_fit needs two tables (rows, points) of one shape with two rows or more; got "
                            f"{kl.shape} and {gain.shape}")  # fmt: skip
    picks = [np.arange(len(kl)), *resampled(len(kl), resamples, np.random.default_rng([seed, 13]))]
    fits = [fit_form(kl[p].mean(0), gain[p].mean(0), form) for p in picks]
    found = pd.DataFrame({name: [getattr(fit, name) for fit in fits]
                          for name in ("alpha", "beta", "peak_kl", "peak_gain")})  # fmt: skip
    low, high = found[1:].quantile([0.025, 0.975], interpolation="nearest").to_numpy()
    return pd.DataFrame({"value": found.iloc[0], "low": low, "high": high})


def highest(kl, gain) -> tuple[float, float]:
    """KL and gain of the highest measured point."""
    kl, gain = _checked(kl, gain, least=0)
    top = int(np.argmax(gain))
    return float(kl[top]), float(gain[top])


def safe_kl(kl, gain, drop: float) -> float:
    """The KL up to which gold stays within `drop` of its highest value: where it first falls below that after its peak
    (linear between points); infinite if it never does."""
    kl, gain = _checked(kl, gain, least=0)
    order = np.argsort(kl, kind="stable")
    kl, gain = kl[order], gain[order]
    top = int(np.argmax(gain))
    below = np.flatnonzero(gain[top:] < gain[top] - drop)
    if not len(below):
        return float("inf")
    i = top + int(below[0])
    return float(np.interp(gain[top] - drop, [gain[i], gain[i - 1]], [kl[i], kl[i - 1]]))
