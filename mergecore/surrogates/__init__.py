"""Surrogates: cheap models of a metric over the scaling coefficients.

``quadratic``         the quadratic of MAP with a link for the metric's range, and its fit
``links``             identity, sigmoid and softplus
``least_squares``     design matrix, closed form, Levenberg-Marquardt, ridge by leave-one-out
``gaussian_process``  nearly quadratic processes, for Bayesian MAP's expected improvement
"""

from mergecore.surrogates.quadratic import QuadraticFit, QuadraticSurrogate, fit_quadratic

__all__ = ["QuadraticFit", "QuadraticSurrogate", "fit_quadratic"]
