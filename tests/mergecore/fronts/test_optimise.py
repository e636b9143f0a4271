"""Fronts against analytic ones: convex quadratics, ZDT, DTLZ; every algorithm keeps the contract."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from pymoo.problems import get_problem

from mergecore.errors import InputError, NumericalError
from mergecore.fronts.dominance import non_dominated
from mergecore.fronts.evolve import nsga3, reference_directions
from mergecore.fronts.indicators import hypervolume, inverted_generational_distance
from mergecore.fronts.optimise import ALGORITHMS, optimise_front, stack
from mergecore.sampling import sample
from mergecore.surrogates import QuadraticSurrogate

UNIT = [(0.0, 1.0)]


def bowls(models: int, targets: np.ndarray) -> list[QuadraticSurrogate]:
    """-|c - target|² for every target, as surrogates: the Pareto set is the convex hull of the targets."""
    return [QuadraticSurrogate(-float(t @ t), 2 * t, -2 * np.eye(models)) for t in targets]


def accuracies(models: int, tasks: int, seed: int) -> list[QuadraticSurrogate]:
    """Surrogates like those of merged models: each task gains from its own model and loses from the others."""
    generator = np.random.default_rng(seed)
    found = []
    for task in range(tasks):
        b = generator.normal(0, 0.3, models) - 0.4
        b[task % models] = 5
        H = generator.normal(0, 0.5, (models, models))
        A = -0.5 * (H + H.T) @ (H + H.T).T - 0.3 * np.eye(models)
        A[task % models, task % models] -= 4
        found.append(QuadraticSurrogate(generator.uniform(-1, 0.5), b, (A + A.T) / 2, 0, 1))
    return found


class TestAnalyticFronts:
    @pytest.mark.parametrize("models", [2, 3, 8])
    def test_two_convex_quadratics(self, models: int) -> None:
        targets = np.stack([np.full(models, 0.2), np.linspace(0.5, 0.9, models)])
        c, metrics = optimise_front(
            bowls(models, targets), box=UNIT * models, maximise=[True, True], generations=50, seed=0
        )
        # the Pareto set is the segment between the targets, with costs t² d² and (1 - t)² d²
        d2 = ((targets[0] - targets[1]) ** 2).sum()
        along = ((c - targets[0]) @ (targets[1] - targets[0])) / d2
        np.testing.assert_allclose(c, targets[0] + along[:, None] * (targets[1] - targets[0]), atol=5e-3)
        # area under (1 - sqrt(x))², x in [0, 1], is 1/6; the reference is (1.1, 1.1) d²
        exact = 1.1**2 - 1 / 6
        volume = hypervolume(-metrics / d2, reference_T=[1.1, 1.1], maximise=[False, False])
        assert 0.99 * exact < volume <= exact + 1e-9
        assert along.min() < 0.01
        assert along.max() > 0.99

    @pytest.mark.parametrize("models", [3, 8])
    def test_three_convex_quadratics(self, models: int) -> None:
        targets = np.random.default_rng(models).uniform(0.1, 0.9, size=(3, models))
        c, metrics = optimise_front(
            bowls(models, targets), box=UNIT * models, maximise=[True] * 3, generations=100, seed=0
        )
        weights = np.linalg.lstsq(np.vstack([targets.T, np.ones(3)]), np.vstack([c.T, np.ones(len(c))]), rcond=None)[
            0
        ].T
        np.testing.assert_allclose(c, weights @ targets, atol=5e-3)
        assert weights.min() > -0.02
        np.testing.assert_allclose(weights[:3].max(axis=1), 1, atol=0.01)
        dense = np.random.default_rng(0).dirichlet(np.ones(3), size=5000) @ targets
        analytic = -((dense[:, None] - targets) ** 2).sum(axis=2)
        worst = analytic.min(axis=0) - 0.5 * np.ptp(analytic, axis=0)
        exact, volume = (hypervolume(m, reference_T=worst, maximise=[True] * 3) for m in (analytic, metrics))
        assert volume > 0.99 * exact

    @pytest.mark.parametrize("models", [2, 3, 8])
    @pytest.mark.parametrize("name", ["zdt1", "zdt2", "zdt3", "zdt4", "zdt6"])
    def test_zdt(self, name: str, models: int) -> None:
        problem = get_problem(name, n_var=models)
        box = np.stack([problem.xl, problem.xu], axis=1)
        _, found = optimise_front(
            evaluator(problem), box=box, maximise=[False, False], population=120, generations=100, seed=1
        )
        exact, volume = (
            hypervolume(m, reference_T=[1.1, 1.1], maximise=[False, False]) for m in (problem.pareto_front(), found)
        )
        assert 0.99 * exact < volume < 1.005 * exact

    @pytest.mark.parametrize("models", [3, 8])
    @pytest.mark.parametrize(("name", "reference"), [("dtlz1", 0.55), ("dtlz2", 1.1), ("dtlz3", 1.1), ("dtlz4", 1.1)])
    def test_dtlz_with_three_objectives(self, name: str, reference: float, models: int) -> None:
        """No 100 points cover a surface to 1 %: they must be as good as 100 evenly spread ones of the true front."""
        problem = get_problem(name, n_var=models, n_obj=3)
        box = np.stack([problem.xl, problem.xu], axis=1)
        # with 8 variables these two have thousands of local fronts to leave behind
        generations = 600 if models == 8 and name in ("dtlz1", "dtlz3") else 150
        _, found = optimise_front(
            evaluator(problem), box=box, maximise=[False] * 3, population=100, generations=generations, seed=1
        )
        true_points = problem.pareto_front(reference_directions(3, 100))
        ideal, volume = (
            hypervolume(m, reference_T=[reference] * 3, maximise=[False] * 3) for m in (true_points, found)
        )
        assert volume > 0.99 * ideal
        assert len(found) == 100

    def test_a_larger_population_comes_closer(self) -> None:
        problem = get_problem("dtlz2", n_var=3, n_obj=3)
        box = np.stack([problem.xl, problem.xu], axis=1)
        small, large = (
            optimise_front(evaluator(problem), box=box, maximise=[False] * 3, population=p, generations=30, seed=1)[1]
            for p in (50, 300)
        )
        dense = problem.pareto_front(reference_directions(3, 4000))
        assert inverted_generational_distance(large, dense) < 0.5 * inverted_generational_distance(small, dense)

    def test_mixed_directions_are_the_same_problem(self) -> None:
        surrogates = accuracies(3, 2, seed=0)
        both_up = optimise_front(surrogates, box=UNIT * 3, maximise=[True, True], generations=20, seed=3)
        function = stack(surrogates)
        mixed = optimise_front(
            lambda c: function(c) * [1, -1], box=UNIT * 3, maximise=[True, False], generations=20, seed=3
        )
        assert np.array_equal(both_up[0], mixed[0])
        np.testing.assert_array_equal(both_up[1], mixed[1] * [1, -1])


def evaluator(problem: object) -> Callable[[np.ndarray], np.ndarray]:
    return lambda c: problem.evaluate(c, return_values_of=["F"])


class TestEightTasks:
    """N = T = 8, the size of the paper's largest experiment."""

    def volume(self, metrics: np.ndarray) -> float:
        return hypervolume(metrics, reference_T=np.zeros(8), maximise=[True] * 8)

    def test_more_generations_gain_next_to_nothing(self) -> None:
        surrogates = accuracies(8, 8, seed=1)
        few, many = (
            self.volume(optimise_front(surrogates, box=UNIT * 8, maximise=[True] * 8, generations=g, seed=0)[1])
            for g in (60, 300)
        )
        assert few > 0.97 * many

    def test_is_far_better_than_the_population_it_started_from(self) -> None:
        surrogates = accuracies(8, 8, seed=2)
        function = stack(surrogates)
        _, found = optimise_front(surrogates, box=UNIT * 8, maximise=[True] * 8, generations=50, seed=0)
        plain = nsga3(
            lambda c: -function(c),
            sample("sobol", 200, box=UNIT * 8, seed=0),
            box_N2=np.array(UNIT * 8),
            generations=200,
            seed=0,
        )[-200:]
        assert self.volume(found) > 1.3 * self.volume(function(plain))

    def test_reaches_the_best_of_every_task(self) -> None:
        surrogates = accuracies(8, 8, seed=3)
        _, found = optimise_front(surrogates, box=UNIT * 8, maximise=[True] * 8, generations=50, seed=0)
        dense = stack(surrogates)(sample("sobol", 20000, box=UNIT * 8, seed=1))
        assert (found.max(axis=0) >= dense.max(axis=0) - 1e-6).all()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
class TestEveryAlgorithm:
    @pytest.mark.parametrize(("models", "tasks"), [(1, 1), (3, 1), (2, 2), (3, 5), (8, 8)])
    def test_gives_a_front_in_the_box(self, algorithm: str, models: int, tasks: int) -> None:
        surrogates, box = accuracies(models, tasks, seed=4), np.array([(-0.5, 1.5)] * models)
        options = {"algorithm": algorithm, "population": 16, "generations": 6}
        c, metrics = optimise_front(surrogates, box=box, maximise=[True] * tasks, seed=2, **options)
        assert c.shape == (len(metrics), models)
        assert metrics.shape[1] == tasks
        assert 1 <= len(c) <= 16
        assert ((c >= box[:, 0]) & (c <= box[:, 1])).all()
        assert np.array_equal(metrics, stack(surrogates)(c))
        assert non_dominated(metrics, maximise=[True] * tasks).all()
        again, _ = optimise_front(surrogates, box=box, maximise=[True] * tasks, seed=2, **options)
        assert np.array_equal(c, again)

    def test_finds_the_one_best_point_of_one_objective(self, algorithm: str) -> None:
        c, metrics = optimise_front(
            bowls(3, np.array([[0.3, 0.6, 1.0]])),
            box=UNIT * 3,
            maximise=[True],
            algorithm=algorithm,
            population=12,
            generations=10,
            seed=0,
        )
        np.testing.assert_allclose(c, [[0.3, 0.6, 1.0]], atol=1e-4)
        assert metrics[0, 0] == pytest.approx(0, abs=1e-7)

    def test_agreeing_objectives_give_one_point(self, algorithm: str) -> None:
        surrogates = bowls(2, np.array([[0.5, 0.5]])) * 3
        c, _ = optimise_front(
            surrogates, box=UNIT * 2, maximise=[True] * 3, algorithm=algorithm, population=20, generations=10, seed=0
        )
        np.testing.assert_allclose(c, [[0.5, 0.5]], atol=1e-4)
        assert len(c) == 1

    def test_constant_objectives_are_no_obstacle(self, algorithm: str) -> None:
        options = {"algorithm": algorithm, "population": 20, "generations": 10, "seed": 0}
        c, metrics = optimise_front(
            lambda c: np.column_stack([c[:, 0], np.full(len(c), 0.5), 1 - c[:, 0]]),
            box=UNIT * 2,
            maximise=[True] * 3,
            **options,
        )
        assert len(c) == 20
        assert np.ptp(metrics[:, 0]) == 1
        flat, _ = optimise_front(lambda c: np.zeros((len(c), 2)), box=UNIT * 2, maximise=[True] * 2, **options)
        assert len(flat) == 1

    def test_tiny_units_do_not_matter(self, algorithm: str) -> None:
        """pymoo's tolerances are absolute: a metric in the sixth decimal place must not count as constant."""
        options = {"maximise": [True, True], "algorithm": algorithm, "population": 20, "generations": 15, "seed": 0}
        surrogates = accuracies(2, 2, seed=1)
        function = stack(surrogates)
        c, _ = optimise_front(function, box=UNIT * 2, **options)
        small, _ = optimise_front(lambda c: function(c) * 2.0**-40, box=UNIT * 2, **options)
        assert np.array_equal(c, small)


def test_points_come_best_first() -> None:
    surrogates = accuracies(3, 3, seed=5)
    _, metrics = optimise_front(surrogates, box=UNIT * 3, maximise=[True] * 3, generations=30, seed=0)
    assert set(metrics.argmax(axis=0)) <= {0, 1, 2}
    first, last = (hypervolume(m, reference_T=np.zeros(3), maximise=[True] * 3) for m in (metrics[:12], metrics[-12:]))
    assert first > last


def test_stack_takes_any_surrogate() -> None:
    class Constant:
        def predict(self, coefficients_KN: np.ndarray) -> np.ndarray:
            return np.full(len(coefficients_KN), 0.25)

    surrogates = [*accuracies(2, 1, seed=0), Constant()]
    predicted = stack(surrogates)(np.zeros((4, 2)))
    assert predicted.shape == (4, 2)
    assert (predicted[:, 1] == 0.25).all()
    np.testing.assert_allclose(predicted[:, 0], surrogates[0].predict(np.zeros((4, 2))))


def test_the_same_front_in_another_process() -> None:
    script = (
        "import numpy as np\n"
        "from mergecore.fronts.optimise import optimise_front\n"
        "f = lambda c: np.column_stack([c.sum(axis=1), (c ** 2).sum(axis=1)])\n"
        "c, _ = optimise_front(f, box=[(0, 1)] * 3, maximise=[True, False], population=12, generations=9, seed=5)\n"
        "print([[x.hex() for x in row] for row in c.tolist()])"
    )
    runs = [
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True) for _ in range(2)
    ]
    assert runs[0].stdout == runs[1].stdout
    assert runs[0].stdout.count("0x") == 36


def test_the_module_does_not_import_pymoo() -> None:
    """The config imports it for the names of the algorithms."""
    script = "import sys, mergecore.fronts.optimise; print('pymoo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


class TestMistakes:
    def run(self, objectives: object = None, **options: object) -> None:
        arguments = {"box": UNIT * 2, "maximise": [True, True], "population": 8, "generations": 2, "seed": 0} | options
        optimise_front(accuracies(2, 2, seed=0) if objectives is None else objectives, **arguments)

    def test_unknown_algorithm(self) -> None:
        with pytest.raises(InputError, match="Did you mean 'nsga3'"):
            self.run(algorithm="nsga33")

    @pytest.mark.parametrize("options", [{"population": 3}, {"generations": 0}])
    def test_too_small(self, options: dict[str, int]) -> None:
        with pytest.raises(InputError, match="cannot spread"):
            self.run(**options)

    def test_more_objectives_than_points(self) -> None:
        with pytest.raises(InputError, match="population of 12"):
            self.run(accuracies(2, 12, seed=0), maximise=[True] * 12)

    def test_bad_box(self) -> None:
        with pytest.raises(InputError, match="box of model 1"):
            self.run(box=[(0, 1), (1, 0)])

    def test_box_of_other_models(self) -> None:
        with pytest.raises(InputError, match=r"\[K, 2\]"):
            self.run(box=UNIT * 3)

    def test_directions_that_do_not_fit(self) -> None:
        with pytest.raises(InputError, match="shape"):
            self.run(maximise=[True] * 3)

    def test_no_surrogates(self) -> None:
        with pytest.raises(InputError, match="no surrogates"):
            self.run([])

    def test_objectives_without_a_value(self) -> None:
        with pytest.raises(NumericalError, match="nan"):
            self.run(lambda c: np.column_stack([c[:, 0], np.where(c[:, 1] > 0.5, np.nan, 1.0)]))
