"""Bayesian MAP: a few samples, then rounds where they tell most (MAP, Appendix E.3, Algorithm 3)."""

from __future__ import annotations

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

    def notes(self, *, workers: int = 1) -> list[str]:
        """Those of plain MAP, and how many workers a round leaves idle."""
        notes, batch = super().notes(), self.options.batch
        most = min(workers, self.budget - self.initial)
        if most > batch:
            notes.append(
                f"Rounds of {batch} coefficient vectors keep {batch} of this machine's {workers} workers busy; "
                f"'search.batch: {most}' keeps {'all' if most == workers else most}."
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

    def ask(self, pending_QN: np.ndarray | None = None) -> np.ndarray:
        """The first samples, then ``batch`` a round until the budget is spent.

        Args:
            pending_QN: what was asked for earlier and is not told yet; it counts as spent, and nothing is proposed
                where it tells already.
        """
        pending = np.empty((0, self.models)) if pending_QN is None else np.asarray(pending_QN, dtype=np.float64)
        done = len(self.coefficients_KN)
        if not done and len(pending):
            return np.empty((0, self.models))  # nothing to learn from yet
        self.wanted_KT = None
        missing = self.initial - done - len(pending)
        if missing > 0:  # nothing was told yet, or less than a first round by a warm start
            return without(self.first(), np.concatenate([self.coefficients_KN, pending]))[:missing]
        count = min(self.options.batch, self.budget - done - len(pending))
        if count <= 0:
            return np.empty((0, self.models))
        fits = self.fits()
        poor = self._poor(fits)
        known = Known(
            self.coefficients_KN,
            self.metrics_KT[:, poor],
            self.noise_KT[:, poor],
            tuple(fits[t] for t in poor),
            self.box_N2,
            self.objectives.some(poor),
            pending,
        )
        focused = len(poor) < len(fits)
        self.wanted_KT = np.tile(np.isin(np.arange(len(fits)), poor), (count, 1)) if focused else None
        acquisition = AngularBins(AngularBins.Options()) if focused else self.options.make_acquisition(len(fits))
        # it follows from how much is known, so that a continued search goes on as it would have
        seed = self.options.seed * 1_000_003 + done + len(pending)
        proposed_KN, facts = acquisition.propose(known, count, seed=seed)
        surrogates = {name: fit.surrogate.to_dict() for name, fit in zip(self.objectives.names, fits, strict=True)}
        self.rounds.append(
            {"known": done, "tasks": known.objectives.names, "surrogates": surrogates, "acquisition": facts}
        )
        return proposed_KN

    def _poor(self, fits: tuple[QuadraticFit, ...]) -> list[int]:
        """The tasks that the next candidates are for: all, or in every other round those that ``focus`` tells apart."""
        everything = list(range(len(fits)))
        complete = np.isfinite(self.metrics_KT[-1]).all() if len(self.metrics_KT) else True
        if self.options.focus is None or not complete:  # a round for some was just told
            return everything
        poor = [t for t in everything if not fits[t].cross_validated_r2 >= self.options.focus]
        return poor if 0 < len(poor) < len(everything) else everything
