"""Last stages: figures of the run, its folder, its artifacts, its MLflow record."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from prefect import task
from prefect.cache_policies import NO_CACHE

from mergecore.budget import Tally
from mergecore.fronts.diagnose import diagnose, typical_noise
from mergecore.fronts.dominance import non_dominated
from mergecore.fronts.indicators import hypervolume, worst_metrics
from mergecore.measured import shares
from mergecore.pick import corner_table
from mergecore.pictures.fronts import front_figure
from mergecore.pictures.tree import merge_tree
from mergecore.pictures.tree_panels import tree_figure
from mergecore.run_folder import write_run
from mergecore.run_record import RunRecord, TaskInfo
from mergecore.search import Front, Search
from mergecore.study import Study, versions
from tasks.artifacts import publish
from tasks.evaluation import Evaluations

if TYPE_CHECKING:
    from tasks.run import Run


def write_record(
    run: Run,
    search: Search,
    front: Front,
    rounds: list[Evaluations],
    held_out: Evaluations | None,
    test_PT: np.ndarray,
    *,
    findings: Mapping[str, Any] | None = None,
    figures: Mapping[str, bytes] | None = None,
) -> RunRecord:
    """Everything the run found, as its folder, its artifacts and its MLflow record.

    Args:
        run: the run.
        search: told everything.
        front: verified.
        rounds: evaluations in order, the verification last.
        held_out: evaluations on the held-out split, if there is one.
        test_PT: held-out metrics of the front; NaN where not measured.
        findings: of this method alone, for the summary.
        figures: likewise, name to PNG.
    """
    record = build_record(run, search, front, rounds, held_out, test_PT)
    record.summary |= findings or {}
    pictures = {"front": front_figure(record), **(figures or {})}
    if nodes := merge_tree(record.summary):
        pictures["tree"] = tree_figure(nodes, title=f"{record.name}: merges of nested MAP")
    save_record(run, record)
    log_record(run, record, pictures)
    publish_artifacts(run, record, pictures)
    return record


@task(name="summarise", cache_policy=NO_CACHE)
def build_record(
    run: Run, search: Search, front: Front, rounds: list[Evaluations], held_out: Evaluations | None, test_PT: np.ndarray
) -> RunRecord:
    """Tables and figures of the run."""
    study, goals = run.study, run.study.objectives
    samples_KT = search.metrics_KT
    noise_T = typical_noise(np.concatenate([found.noise_KM[~found.estimated_K] for found in rounds]))
    best_PT = np.where(np.isfinite(front.real_PT), front.real_PT, front.predicted_PT)
    diagnosis = diagnose(
        samples_KT, best_PT, maximise=goals.maximise, noise_T=noise_T, names=goals.names, seed=study.config.search.seed
    )
    return RunRecord(
        name=study.config.name,
        models=list(study.models),
        tasks=[
            TaskInfo(name=t.name, metric=t.metric, maximise=t.maximise, lower=t.bounds[0], upper=t.bounds[1])
            for t in study.config.tasks
        ],
        front=_front_table(study.models, goals.names, front, test_PT),
        evaluations=_evaluation_table(run, rounds),
        surrogates=_surrogates(goals.names, front),
        summary={
            "method": study.config.search.method,
            "study": study.digest,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "evaluations": (counts := _counts(study, rounds, held_out)),
            "spent": {**run.spent, "verification_pairs": round(counts["full_pairs"] - run.spent["full_pairs"])},
            **_volumes(run, search, front, rounds),
            "predicted_real_gap": _gap(goals.names, front),
            "held_out_r2": {name: fit.cross_validated_r2 for name, fit in zip(goals.names, front.fits, strict=False)},
            "rounds": search.rounds,
            "convergence": run.convergence,
            "diagnosis": diagnosis.to_dict(),
            "noise": dict(zip(goals.names, noise_T.tolist(), strict=True)),
            "timings": {**run.timings, "total": time.time() - run.started},
            "decoded_examples": run.decoded + run.pool.decoded,
            "worker_deaths": run.pool.deaths,
            "tracking": {"uri": run.tracker.uri, "run_id": run.tracker.run_id, "open": run.tracker.address},
            "home": str(study.home),
        },
        config={
            **study.config.model_dump(mode="json"),
            "resolved": {"fingerprints": study.fingerprints, "versions": versions()},
        },
    )


@task(name="save run folder", cache_policy=NO_CACHE)
def save_record(run: Run, record: RunRecord) -> None:
    """The files of the run, whole or not at all."""
    write_run(run.folder, record)


@task(name="log to MLflow", cache_policy=NO_CACHE, retries=2, retry_delay_seconds=2)
def log_record(run: Run, record: RunRecord, pictures: dict[str, bytes]) -> None:
    """Figures, front, what it gives for common preferences, pictures and files on the parent run."""
    tables = {"front": record.front, "preferences": corner_table(record)}
    shown = {name: table for name, table in tables.items() if len(table)}
    run.tracker.log_result(record.summary, shown, pictures, run.folder)


@task(name="publish artifacts", cache_policy=NO_CACHE)
def publish_artifacts(run: Run, record: RunRecord, pictures: dict[str, bytes]) -> None:
    """Front table, pictures and summary in the Prefect UI."""
    publish(record, pictures, report=str((run.folder / "report.html").resolve()), tracking=run.tracker.address)


def _front_table(models: Sequence[str], tasks: tuple[str, ...], front: Front, test_PT: np.ndarray) -> pd.DataFrame:
    columns = {f"c.{model}": front.coefficients_PN[:, n] for n, model in enumerate(models)}
    for kind, metrics in (("predicted", front.predicted_PT), ("real", front.real_PT), ("test", test_PT)):
        columns |= {f"{kind}.{name}": metrics[:, t] for t, name in enumerate(tasks)}
    return pd.DataFrame(columns)


def _evaluation_table(run: Run, rounds: list[Evaluations]) -> pd.DataFrame:
    study = run.study
    frames = []
    for number, found in enumerate(rounds):
        columns: dict[str, Any] = {f"c.{m}": found.coefficients_KN[:, n] for n, m in enumerate(study.models)}
        columns |= {name: found.metrics_KM[:, t] for t, name in enumerate(study.objectives.names)}
        columns |= {
            "round": number,
            "seconds": found.seconds_K,
            "worker": found.workers,
            "fingerprint": [
                study.evaluation_key(c, (study.part_tasks if estimated else study.search_tasks)[0])
                for c, estimated in zip(found.coefficients_KN, found.estimated_K, strict=True)
            ],
            "status": [
                f"failed: {reason}" if reason else "estimated from a part of the data" if estimated else "ok"
                for reason, estimated in zip(found.reasons, found.estimated_K, strict=True)
            ],
        }
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def _surrogates(tasks: tuple[str, ...], front: Front) -> dict[str, dict[str, Any]]:
    return {name: fit.to_dict() for name, fit in zip(tasks, front.fits, strict=False)}


def _counts(study: Study, rounds: list[Evaluations], held_out: Evaluations | None) -> dict[str, Any]:
    """(coefficient vector, task) pairs on the data of the search; held-out pairs apart."""
    tally, fresh = Tally(shares(study.measured)), sum(found.fresh for found in rounds)
    for found in rounds:
        found.count(tally)
    return {
        "coefficient_vectors": tally.vectors,
        "pairs": tally.pairs,
        "full_pairs": tally.full_pairs,
        "new_pairs": fresh,
        "known_pairs": tally.measurements - fresh,
        "failed": int(sum((np.isnan(found.metrics_KM) & found.wanted_KM).sum() for found in rounds)),
        "held_out_pairs": 0 if held_out is None else int(held_out.metrics_KM.size),
        "share_of_data": tally.full_pairs / tally.pairs,
    }


def _volumes(run: Run, search: Search, front: Front, rounds: list[Evaluations]) -> dict[str, Any]:
    """Hypervolumes against the worst of the single-task cross-evaluations."""
    goals = run.study.objectives
    c_KN = search.coefficients_KN
    singles = (c_KN.max(axis=1) == 1) & (np.count_nonzero(c_KN, axis=1) == 1)
    usable = search.metrics_KT[singles]
    alone = "single-task models" if run.study.routers is None else "unit preferences"
    source = f"worst of the {alone} on each task"
    if not np.isfinite(usable).any(axis=0).all():
        usable, source = search.metrics_KT, "worst of the samples on each task"
    reference = worst_metrics(usable, maximise=goals.maximise)

    def volume(metrics: np.ndarray) -> float | None:
        rows = metrics[np.isfinite(metrics).all(axis=1)]
        return hypervolume(rows, reference_T=reference, maximise=goals.maximise) if len(rows) else None

    measured = [found.metrics_KM[~found.estimated_K] for found in rounds]
    by_round = [volume(np.concatenate(measured[: i + 1])) for i in range(len(rounds))]
    real = front.real_PT[non_dominated(front.real_PT, maximise=goals.maximise)]
    return {
        "reference_point": {"values": dict(zip(goals.names, reference.tolist(), strict=True)), "source": source},
        "hypervolume": {"predicted": volume(front.predicted_PT), "real": volume(real), "evaluated": by_round[-1]},
        "hypervolume_by_round": by_round,
    }


def _gap(tasks: tuple[str, ...], front: Front) -> dict[str, float]:
    """Mean absolute difference between predicted and real metric over the verified points."""
    both = np.abs(front.predicted_PT - front.real_PT)
    if not np.isfinite(both).any():
        return {}
    return dict(zip(tasks, np.nanmean(both, axis=0).tolist(), strict=True))
