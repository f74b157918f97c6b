"""The command ``lecture6``: list, run and show the studies."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

import click

from lecture6.studies import STUDIES, Study, StudyError, collect, plan, results, run
from lecture6.studies.runner import duration, rank

_FOLDER = click.Path(path_type=Path, file_okay=False)
_kept = "Where finished trials are kept. [default: $LECTURE6_STUDIES, else a cache folder]"
_folder = click.option("--folder", type=_FOLDER, help=_kept)
_profile = click.option(
    "--profile",
    default=lambda: os.environ.get("LECTURE6_PROFILE", "full"),
    show_default="$LECTURE6_PROFILE, else full",
    help="smoke, book, or full: the papers' sizes, hours on a CPU; `lecture6 list` shows others.",
)
_data = click.option(
    "--data",
    "replace",
    multiple=True,
    metavar="[OLD=]NEW",
    help="Use data set NEW where the study names OLD, e.g. cifar10=cifar10_jpeg; "
    "OLD may be left out where it names only one.",
)
_study = click.argument("study", type=click.Choice(list(STUDIES)))


class _Commands(click.Group):
    """In the order of their definition; says errors in one line, in any encoding."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> None:
        with suppress(AttributeError):  # a notebook's stdout takes all characters
            sys.stdout.reconfigure(errors="replace")  # where cp1252 has no η, a question mark
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # of `lecture6 … | head`: click's own
            raise
        except (StudyError, OSError) as error:
            raise click.ClickException(str(error)) from None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="lecture6")
def main() -> None:
    """Studies of the course "Towards Understanding SGD".

    A study trains many networks and can take hours. Stop it whenever you like: every finished
    trial is kept, and the same command continues.
    """


def _replacements(pairs: tuple[str, ...], study: Study, profile: str) -> dict[str, str]:
    replace = {}
    for pair in pairs:
        used, (old, equals, new) = study.data_sets(profile), pair.partition("=")
        if not equals and len(used) == 1:
            old, new = used[0], pair
        if not (old and new):
            uses = f"{study.name} at profile {profile} uses {', '.join(used) or 'no data set'}"
            what = f"{pair!r} is not of the form OLD=NEW; {uses}"
            raise click.BadParameter(what, param_hint="--data")
        replace[old] = new
    return replace


@main.command("list")
def list_studies() -> None:
    """What studies there are, and which have stored results."""
    click.echo(
        "Times are estimates: of one core, or, for profiles cifar10, imagenet and gpu, of a GPU."
    )
    for study in STUDIES.values():
        click.echo(f"{study.name}: {study.about}")
        for profile in study.grids:
            trials = study.trials(profile)
            seconds = duration(sum(t.cost for t in trials))
            click.echo(f"  {profile:8}{len(trials):4} trials, about {seconds} one after another")
        stored = "none"
        with suppress(FileNotFoundError):
            stored = results.load(study.name).caption
        click.echo(f"  stored results: {stored}")


@main.command("run")
@_study
@_profile
@click.option("--jobs", type=click.IntRange(1), help="Trials at a time. [default: 1, or one a GPU]")
@_folder
@_data
@click.option("--backend", type=click.Choice(["loky", "dask"]), default="loky", show_default=True)
@click.option("--scheduler", metavar="ADDRESS", help="Of the Dask cluster: tcp://host:8786")
@click.option("--dry-run", is_flag=True, help="Say what would be run, and how long it takes.")
def run_study(study, profile, jobs, folder, replace, backend, scheduler, dry_run) -> None:
    """Run the trials of STUDY that are not finished.

    Where several processes can share a trial, start it on one machine or more by torchrun:
    torchrun --nproc-per-node 8 -m lecture6 run ...
    """
    chosen = STUDIES[study]
    if rank():  # the process of rank 0 says and writes everything
        if not dry_run:
            run(chosen, profile)
        return
    where = {"folder": folder, "replace": _replacements(replace, chosen, profile)}
    todo = plan(chosen, profile, **where)
    click.echo(
        f"{study} at profile {profile}: {len(todo.trials)} trials, {len(todo.finished)} finished, "
        f"{len(todo.trials) - len(todo.finished)} to run, about "
        f"{duration(todo.seconds / (jobs or 1))}; kept in {todo.folder}"
    )
    if dry_run:
        for trial in todo.trials:
            state = "finished" if trial in todo.finished else duration(trial.cost)
            click.echo(f"  {state:>8}  {trial}")
        return
    outcome = run(chosen, profile, jobs=jobs, backend=backend, scheduler=scheduler, **where)
    for error, trials in outcome.failed.items():
        click.echo(f"failed ({len(trials)} trials): {error}; the first: {trials[0]}", err=True)
    failed = sum(map(len, outcome.failed.values()))
    click.echo(f"{outcome.finished} trials finished, {failed} failed")
    raise SystemExit(bool(outcome.failed))


@main.command("collect")
@_study
@_profile
@_folder
@_data
@click.option("--partial", is_flag=True, help="Collect what is there, though trials are missing.")
@click.option("--to", type=_FOLDER, help="Another folder.")
def collect_study(study, profile, folder, replace, partial, to) -> None:
    """Store the tables of the finished trials of STUDY."""
    where = {"folder": folder, "replace": _replacements(replace, STUDIES[study], profile)}
    tables, record = collect(STUDIES[study], profile, partial=partial, **where)
    path = results.save(study, tables, record, folder=to)
    lengths = ", ".join(f"{kind} ({len(table):,} rows)" for kind, table in tables.items())
    click.echo(f"{path}: {lengths}")


@main.command("show")
@_study
@click.option("--rows", type=click.IntRange(0), default=10, show_default=True)
@click.option("--from", "folder", type=_FOLDER, help="Where collect put it. [default: the package]")
def show_study(study: str, rows: int, folder: Path | None) -> None:
    """What is stored of STUDY: how it was computed, and the first rows of each table.

    A field is empty where a trial has no such value; a parameter then has its default.
    """
    stored = results.load(study, folder=folder)
    for key, value in stored.record.items():
        if key != "tables":
            click.echo(f"{key:10} {value}")
    for kind, table in stored.tables.items():
        shown = table.head(rows).to_string(index=False, line_width=200, na_rep="")
        click.echo(f"\n{kind}, {len(table):,} rows:\n{shown}")


if __name__ == "__main__":
    main(prog_name="lecture6")
