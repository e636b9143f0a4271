"""Pareto fronts: find, measure, choose from and judge them.

``dominance``   which candidates no other one dominates
``optimise``    the front of surrogates, or of any cheap objectives, by a many-objective optimiser
``evolve``      those optimisers: NSGA-III on arrays, NSGA-II, SMS-EMOA
``refine``      the last step: choose points by hypervolume, descend to where nothing improves for free
``indicators``  hypervolume, GD, IGD, IGD+, win rate, preference-weighted sums
``choose``      one point: by preference, by constraints, the knee
``spread``      a few points that stand for the whole front
``diagnose``    is there a trade-off at all?

Metrics keep their own directions in every public function; they are turned into costs once, in ``dominance``.
"""

from mergecore.fronts.dominance import non_dominated, to_minimise

__all__ = ["non_dominated", "to_minimise"]
