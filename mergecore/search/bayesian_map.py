"""Bayesian MAP: a few samples, then rounds where they tell most (MAP, Appendix E.3, Algorithm 3)."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from mergecore.acquisitions import ACQUISITIONS
from mergecore.acquisitions.angular_bins import AngularBins
from mergecore.acquisitions.base import MOST_OBJECTIVES, Acquisition, Known
from mergecore.errors import InputError
from mergecore.options import read_options
from mergecore.sampling import near_models, sample
from mergecore.search.base import SearchOptions
from mergecore.search.map import MapSearch
from mergecore.search.sampled import without
from mergecore.section import known as known_name
from mergecore.surrogates import QuadraticFit

FEW_MODELS = 2
"""Whose box is little larger than the convex hull of base and models."""


class BayesianMapOptions(SearchOptions):
    """``search:`` of the config for Bayesian MAP."""

    method: Literal["bayesian_map"] = "bayesian_map"
    samples: int | None = Field(None, ge=1, description="Coefficient vectors in all; default: 0.6 of plain MAP's.")
    initial: int | None = Field(None, ge=1, description="Of the first round; default: 6, or 2 (N + 1) if more.")
    batch: int = Field(3, ge=1, description="Of every further round.")
    overlap: bool = Field(
        False,
        description="Choose a round while the one before it is still evaluated, without its results, so that no worker "
        "waits.",
    )
    sampler: Literal["auto", "sobol", "uniform", "simplex"] = Field(
        "auto",
        description="Of the first round; auto: around the convex hull of base and models where box and merge allow, "
        "and where there are more than two models.",
    )
    acquisition: str = Field(
        "auto", description=f"One of: {', '.join(ACQUISITIONS)}; auto: hypervolume, past four objectives front."
    )
    acquisition_options: dict[str, Any] = Field(default_factory=dict)
    focus: float | None = Field(
        None, le=1, description="Every other round is only for tasks whose R² is below this, while others' are above."
    )

    @model_validator(mode="after")
    def _acquisition_is_known(self) -> BayesianMapOptions:
        if self.acquisition == "auto":
            if self.acquisition_options:
                raise ValueError("search.acquisition_options need a search.acquisition that they are for")
            return self
        known_name(self.acquisition, ACQUISITIONS)
        if self.acquisition_options:
            try:
                self.make_acquisition(objectives=2)
            except InputError as error:
                raise ValueError(str(error)) from None
        return self

    def make_acquisition(self, objectives: int) -> Acquisition:
        """The acquisition with its options, for so many objectives."""
        by_number = "hypervolume" if objectives <= MOST_OBJECTIVES else "front"
        name = by_number if self.acquisition == "auto" else self.acquisition
        cls, owner = ACQUISITIONS.get(name), f"The acquisition {name!r}"
        options = read_options(cls.Options, self.acquisition_options, owner=owner, where="search.acquisition_options")
        made: Acquisition = cls(options)
        return made


class BayesianMapSearch(MapSearch):
    """Plain MAP whose samples are chosen in rounds; the front is that of the surrogates, as in plain MAP."""

    Options: ClassVar[type[SearchOptions]] = BayesianMapOptions
    at_once: ClassVar[bool] = False
    share: ClassVar[float] = 0.6

    options: BayesianMapOptions  # type: ignore[assignment]

    @property
    def budget(self) -> int:
        """Coefficient vectors in all rounds."""
        plain = self.paper_samples.get(self.models) or self.default_budget()
        return self.options.samples or max(self.initial, round(self.share * plain))

    @property
    def initial(self) -> int:
        """Coefficient vectors of the first round."""
        wanted = self.options.initial or max(6, 2 * (self.models + 1))
        return min(wanted, self.options.samples or wanted)

    @property
    def wants_some(self) -> bool:
        """Where poor tasks have rounds of their own."""
        return self.options.focus is not None

    @property
    def asks_ahead(self) -> bool:
        """Where rounds overlap."""
        return self.options.overlap

    def notes(self, *, workers: int = 1) -> list[str]:
        """Those of plain MAP, and how many workers a round leaves idle."""
        notes, batch = super().notes(), self.options.batch
        rounds, at_once = ("Two rounds at a time", 2) if self.asks_ahead else ("Rounds", 1)
        most = min(workers, self.budget - self.initial)
        if most > at_once * batch:
            notes.append(
                f"{rounds} of {batch} coefficient vectors keep {at_once * batch} of this machine's {workers} workers "
                f"busy; 'search.batch: {math.ceil(most / at_once)}' keeps {'all' if most == workers else most}."
            )
        return notes

    def first(self) -> np.ndarray:
        """The candidates of the first round, [K, N]. Base and single models are seldom on a front, so none is one."""
        low_N, high_N = self.box_N2.T
        around = self.models > FEW_MODELS and not self.objectives.parts and (low_N <= 0).all() and (high_N >= 1).all()
        if self.options.sampler == "auto" and around:
            return np.minimum(near_models(self.initial, models=self.models, seed=self.options.seed), high_N)
        sampler = "sobol" if self.options.sampler == "auto" else self.options.sampler
        return sample(sampler, self.initial, box=self.first_box(), seed=self.options.seed, anchors=False)

    def first_box(self) -> np.ndarray:
        """[N, 2]: the box, drawn toward the base where many models are merged, whose coefficients have to be small."""
        low_N, high_N = self.box_N2.T
        drawn_N2 = np.clip(self.box_N2 * min(1.0, 2 / np.sqrt(self.models)), low_N[:, None], high_N[:, None])
        return np.where((drawn_N2[:, :1] < drawn_N2[:, 1:]), drawn_N2, self.box_N2)

    def ask(self) -> np.ndarray:
        """The first samples, then ``batch`` a round until the budget is spent."""
        return self._propose(np.empty((0, self.models)))

    def ask_ahead(self, pending_QN: np.ndarray) -> np.ndarray:
        """With ``overlap`` the next round: what is pending counts as spent, and none is proposed where it will tell."""
        if not self.asks_ahead or len(self.coefficients_KN) < self.initial:
            return super().ask_ahead(pending_QN)  # before the first round there is too little to learn from
        return self._propose(np.asarray(pending_QN, dtype=np.float64))

    def _propose(self, pending_QN: np.ndarray) -> np.ndarray:
        done = len(self.coefficients_KN)
        # the round before this one was for some of the tasks
        some = self.wanted_KT is not None if len(pending_QN) else not np.isfinite(self.metrics_KT[-1:]).all()
        self.wanted_KT = None
        missing = self.initial - done - len(pending_QN)
        if missing > 0:  # nothing was told yet, or less than a first round by a warm start
            return without(self.first(), np.concatenate([self.coefficients_KN, pending_QN]))[:missing]
        count = min(self.options.batch, self.budget - done - len(pending_QN))
        if count <= 0:
            return np.empty((0, self.models))
        fits = self.fits()
        poor = list(range(len(fits))) if some else self._poor(fits)
        known = Known(
            self.coefficients_KN,
            self.metrics_KT[:, poor],
            self.noise_KT[:, poor],
            tuple(fits[t] for t in poor),
            self.box_N2,
            self.objectives.some(poor),
            pending_QN,
        )
        focused = len(poor) < len(fits)
        self.wanted_KT = np.tile(np.isin(np.arange(len(fits)), poor), (count, 1)) if focused else None
        acquisition = AngularBins(AngularBins.Options()) if focused else self.options.make_acquisition(len(fits))
        # it follows from how much is known, so that a continued search goes on as it would have
        seed = self.options.seed * 1_000_003 + done + len(pending_QN)
        proposed_KN, facts = acquisition.propose(known, count, seed=seed)
        surrogates = {name: fit.surrogate.to_dict() for name, fit in zip(self.objectives.names, fits, strict=True)}
        self.rounds.append(
            {"known": done, "tasks": known.objectives.names, "surrogates": surrogates, "acquisition": facts}
        )
        return proposed_KN

    def _poor(self, fits: tuple[QuadraticFit, ...]) -> list[int]:
        """The tasks that ``focus`` tells apart; all where it tells none."""
        everything = list(range(len(fits)))
        if self.options.focus is None:
            return everything
        poor = [t for t in everything if not fits[t].cross_validated_r2 >= self.options.focus]
        return poor if 0 < len(poor) < len(everything) else everything
