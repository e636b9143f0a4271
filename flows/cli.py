"""The command line: every command runs a flow or reads a finished run."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mergecore.errors import InputError, MergecoreError

if TYPE_CHECKING:
    from mergecore.config import StudyConfig

app = typer.Typer(
    help="The whole Pareto front of a model merge, cheaply, and the checkpoint you pick from it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")]
ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="The study's YAML file.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change one key of the config.")]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder for the run's files.")]


def main() -> None:
    """Entry point: wrong input ends with code 2 and one sentence, everything else with code 1."""
    try:
        app()
    except InputError as error:
        _complain(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        _complain("Interrupted. What was evaluated is kept; run the same command again to continue.")
        sys.exit(130)
    except MergecoreError as error:
        _complain(str(error))
        sys.exit(1)
    except Exception as error:
        if os.environ.get("MERGECORE_DEBUG"):
            raise
        from flows.terminal import note_crash

        log = note_crash(error)
        _complain(f"Unexpected {type(error).__name__}: {str(error).strip() or 'no message'}\nDetails: {log}")
        sys.exit(1)


@app.command()
def quickstart(
    out: Out = None,
    tasks: Annotated[int, typer.Option("--tasks", min=2, max=8, help="How many digit tasks to merge.")] = 3,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of training, samples and front.")] = 0,
) -> None:
    """Fine-tune small models on scikit-learn's digits, merge them, and show the front.

    Example: [bold]mergecore quickstart --tasks 3[/bold]
    """
    from flows.terminal import running

    with running(Path(out or "runs/quickstart")):
        from flows.quickstart import quickstart_flow

        folder = quickstart_flow(tasks=tasks, seed=seed, out=str(out) if out else None)
    _show_result(Path(folder))


@app.command()
def check(config: ConfigFile, overrides: Overrides = None) -> None:
    """Preflight in seconds: files, architectures, shapes, data, metrics, memory, number of evaluations.

    Example: [bold]mergecore check study.yaml[/bold]
    """
    from flows.terminal import print_check
    from mergecore.files import home_folder
    from mergecore.preflight import check as check_study

    study = _study(config, overrides)
    print_check(study.name, check_study(study, home_folder()))


@app.command()
def run(config: ConfigFile, overrides: Overrides = None, out: Out = None) -> None:
    """Run the study; run it again with the same folder to continue an interrupted one.

    Example: [bold]mergecore run study.yaml --set search.samples=60 --out runs/study[/bold]
    """
    from flows.terminal import print_notes, running
    from mergecore.files import home_folder
    from mergecore.preflight import check as check_study

    study = _study(config, overrides)
    print_notes(check_study(study, home_folder()).warnings)
    with running(Path(out or Path("runs") / study.name)):
        from flows import FLOWS

        folder = FLOWS.get(study.search.method)(study, str(out) if out else None)
    _show_result(Path(folder))


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A .pt, .pth or .bin file of torch.save.")],
    target: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="The file to write.")],
) -> None:
    """Turn a pickled module or state dict into safetensors without running anything in it.

    Example: [bold]mergecore convert finetuned.pt finetuned.safetensors[/bold]
    """
    from mergecore.checkpoints.convert import convert as convert_file

    found = convert_file(source, target)
    typer.echo(f"{target}: {found.tensors} tensors, {found.parameters:,} parameters.")
    if found.classes:
        listed = ", ".join(found.classes[:5]) + (
            f" and {len(found.classes) - 5} more" if len(found.classes) > 5 else ""
        )
        typer.echo(f"The file names {listed}; nothing of it was imported or run.")


@app.command()
def pick(
    folder: RunFolder,
    prefer: Annotated[list[str] | None, typer.Option(metavar="TASK=WEIGHT", help="Preference for a task.")] = None,
    at_least: Annotated[list[str] | None, typer.Option(metavar="TASK=BOUND", help="A bound that must be met.")] = None,
    maximize: Annotated[str | None, typer.Option(metavar="TASK", help="What to make best within the bounds.")] = None,
    knee: Annotated[bool, typer.Option("--knee", help="The knee of the front.")] = False,
    verified: Annotated[bool, typer.Option("--verified", help="Only points that were evaluated for real.")] = False,
    export: Annotated[Path | None, typer.Option(metavar="DIR", help="Write the merged checkpoint there.")] = None,
    task: Annotated[
        str | None, typer.Option(metavar="TASK", help="Export the network of this task, with its own head.")
    ] = None,
    method: Annotated[str | None, typer.Option(metavar="METHOD", help="Of a comparison: whose point.")] = None,
    models: Annotated[int | None, typer.Option(metavar="N", help="Of a comparison: for how many models.")] = None,
) -> None:
    """Choose a point of a finished run's front, or of a compared method's, and export its checkpoint.

    The routers of PWE-MoE make the network of any preference, also of one that was not measured.

    Example: [bold]mergecore pick runs/quickstart --prefer upright=0.7 --prefer rotated=0.3 --export merged[/bold]
    """
    from flows.terminal import print_pick
    from mergecore.choice import Choice, choose

    wanted = Choice(
        prefer=_assignments(prefer, "--prefer"),
        at_least=_assignments(at_least, "--at-least"),
        maximize=maximize,
        knee=knee,
        verified=verified,
        method=method,
        models=models,
    )
    record, point = choose(folder, wanted)
    print_pick(record, point)
    if export is not None:
        from tasks.export import export_point

        export_point(record, point, export, task)
        typer.echo(f"\nCheckpoint: {export}")


@app.command()
def package(
    folder: RunFolder,
    target: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for the MLflow model.")],
) -> None:
    """Package a run's whole front as one MLflow model, asked with a preference that may differ from call to call.

    Example: [bold]mergecore package runs/quickstart servable[/bold]
    """
    from mergecore.run_folder import read_run
    from tasks.serving import package_front

    package_front(read_run(folder), target)
    where = shlex.quote(str(target))
    typer.echo(f"Model: {target}\n\nNext:")
    typer.echo(f"  mlflow models serve -m {where} --env-manager local --host 127.0.0.1 --port 5001")


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint that pick --export wrote.")],
) -> None:
    """Reload an exported checkpoint and measure it again: the numbers must be those of the run.

    Example: [bold]mergecore verify merged[/bold]
    """
    from flows.terminal import print_verified
    from mergecore.errors import MergecoreError
    from mergecore.files import writable_home
    from mergecore.reloaded import reload_and_measure

    found = reload_and_measure(folder, writable_home())
    print_verified(folder, found)
    if not all(task.same for task in found):
        raise MergecoreError(f"{str(folder)!r} does not give the numbers of its run.")


@app.command()
def register(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint that pick --export wrote.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the registered model; made if missing.")],
    alias: Annotated[str, typer.Option("--alias", help="The alias that moves to this version.")] = "candidate",
) -> None:
    """Put an exported checkpoint into MLflow's model registry, with base, models, coefficients and metrics.

    Example: [bold]mergecore register merged digits[/bold]
    """
    from flows.terminal import print_versions
    from mergecore.files import home_folder
    from tasks.model_registry import register as register_checkpoint

    print_versions({alias: register_checkpoint(folder, name, home_folder(), alias=alias)})


@app.command()
def promote(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of a registered model.")],
    version: Annotated[str | None, typer.Option("--version", help="Which one; default: the candidate.")] = None,
) -> None:
    """Make the candidate of a registered model its champion, and show both.

    Example: [bold]mergecore promote digits[/bold]
    """
    from flows.terminal import print_versions
    from mergecore.files import home_folder
    from tasks.model_registry import promote as promote_version

    before, after = promote_version(name, home_folder(), version=version)
    print_versions({"champion before": before, "champion": after})


@app.command()
def upload(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint that pick --export wrote.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="On the Hugging Face hub; made if missing.")],
    public: Annotated[bool, typer.Option("--public", help="Everyone may see it; without it only its owner.")] = False,
) -> None:
    """Send an exported checkpoint to the hub, with the account that `hf auth login` set up. Nothing else ever does.

    Example: [bold]mergecore upload merged me/merged[/bold]
    """
    from mergecore.upload import upload_checkpoint

    typer.echo(f"Uploaded: {upload_checkpoint(folder, repository, private=not public)}")


@app.command()
def compare(
    paths: Annotated[
        list[Path], typer.Argument(metavar="RUN RUN … | CONFIG", help="Folders of finished runs, or one study.")
    ],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder for tables and pictures.")] = None,
) -> None:
    """Fronts of several runs side by side; or every merge method on one study, as the papers' tables do.

    Example: [bold]mergecore compare runs/map runs/direct --out comparison[/bold]

    Example: [bold]mergecore compare study.yaml --set compare.counts=[2,3][/bold]
    """
    if len(paths) == 1 and not paths[0].is_dir():
        _compare_methods(paths[0], overrides, out)
        return
    from flows.terminal import print_comparison
    from mergecore.comparison.runs import compare_runs
    from mergecore.run_folder import read_run

    if overrides:
        raise InputError("--set changes a study's config; finished runs are compared as they are.")
    records = [read_run(folder) for folder in paths]
    table = compare_runs(records)
    print_comparison(table)
    if out is not None:
        from mergecore.files import atomic_write
        from mergecore.pictures.fronts import comparison_figure

        atomic_write(out / "compare.csv", table.to_csv(index=False))
        atomic_write(out / "compare.png", comparison_figure(records))
        typer.echo(f"\nWritten: {out / 'compare.csv'}, {out / 'compare.png'}")


def _study(config: Path, overrides: list[str] | None) -> StudyConfig:
    """What a config file says, over the checkpoints that are there now."""
    import tasks  # noqa: F401  (what only MLflow can find)
    from mergecore.config_file import load_config
    from mergecore.files import writable_home
    from mergecore.patterns import resolve_sources

    return resolve_sources(load_config(config, overrides), writable_home())


def _compare_methods(config: Path, overrides: list[str] | None, out: Path | None) -> None:
    from flows.terminal import print_methods, print_notes, relative, running
    from mergecore.files import home_folder
    from mergecore.preflight import check as check_study

    study = _study(config, overrides)
    print_notes(check_study(study.untransformed(), home_folder()).warnings)
    with running(Path(out or Path("runs") / f"{study.name}-compare")):
        from flows.compare import compare_flow

        folder = Path(compare_flow(study, str(out) if out else None))
    print_methods(folder)
    typer.echo(f"\nReport: {relative(folder / 'report.html')}\nTables: {relative(folder / 'tables.md')}")


def _assignments(values: list[str] | None, option: str) -> dict[str, float]:
    """``TASK=NUMBER`` pairs; the last '=' separates, so a task's name may contain one."""
    found: dict[str, float] = {}
    for value in values or []:
        name, separator, number = value.rpartition("=")
        try:
            found[name] = float(number)
        except ValueError:
            separator = ""
        if not separator or not name:
            raise InputError(f"{option} {value!r} is not of the form TASK=NUMBER.")
    return found


def _show_result(folder: Path) -> None:
    from flows.terminal import print_front, relative
    from mergecore.run_folder import read_run

    record = read_run(folder)
    print_front(record)
    first, second = (shlex.quote(record.tasks[i].name) for i in (0, min(1, len(record.tasks) - 1)))
    where: Any = shlex.quote(relative(folder))
    tracking = record.summary["tracking"]
    looks = tracking["open"] if not tracking["open"].startswith("http") else f"open {tracking['open']}"
    typer.echo(f"\nReport: {relative(folder / 'report.html')}\n\nNext:")
    typer.echo(f"  mergecore pick {where} --prefer {first}=0.7 --prefer {second}=0.3 --export merged")
    typer.echo(f"  {looks}")
    typer.echo("  prefect server start")


def _complain(text: str) -> None:
    typer.echo(text, err=True)


if __name__ == "__main__":
    main()
