"""The commands push, card and verify."""

from __future__ import annotations

import json
from pathlib import Path

import click

from merge.commands.sections import SectionedCommand
from merge.commands.terminal import verbose_option
from merge.errors import OutputError


@click.command(cls=SectionedCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("repo_id", metavar="ORG/NAME")
@click.option(
    "--private/--public", default=None, help="Visibility of a new repository.  [default: that of the account]"
)
@click.option("--revision", help="Branch to commit to; created if it does not exist.")
@click.option("--dry-run", is_flag=True, help="Show files, sizes, target and card; upload nothing.")
@verbose_option
def push_command(folder: Path, repo_id: str, private: bool | None, revision: str | None, dry_run: bool) -> None:
    """Upload a merged FOLDER to the Hub as ORG/NAME, in one commit.

    \b
    Example:
      merge-models push merged/ me/my-merge --private --dry-run
    """
    if dry_run:
        _show_push(folder, repo_id, private)
    else:
        push_folder(folder, repo_id, private, revision)


@click.command(cls=SectionedCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--results", type=click.Path(path_type=Path), required=True, help="A results.json written by evaluate-models."
)
@verbose_option
def card_command(folder: Path, results: Path) -> None:
    """Write evaluation results into the model card (README.md) of a merged or edited FOLDER.

    \b
    Example:
      merge-models card merged/ --results report/results.json
    """
    from merge.publish.card_results import add_results

    count = add_results(folder, results)
    click.echo(f"{folder / 'README.md'}: {count} results")


@click.command(cls=SectionedCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@verbose_option
def verify_command(folder: Path, as_json: bool) -> None:
    """Compare the files of a merged or edited FOLDER, and its inputs, with the hashes in merge.json or edit.json.

    Exits 1 if a file was changed, is missing or was added, or if an input that still exists has changed.

    \b
    Example:
      merge-models verify merged/
    """
    from merge.run.verify import verify

    result = verify(folder)
    if as_json:
        click.echo(json.dumps({"holds": result.holds, "files": result.files, "inputs": result.inputs}, indent=2))
    else:
        for kind, states in (("file", result.files), ("input", result.inputs)):
            for name, state in states.items():
                click.echo(f"{kind}  {state:<19}  {name}")
    if not result.holds:
        raise OutputError(f"{folder} or one of its inputs differs from its manifest {result.manifest}.")


def push_folder(folder: Path, repo_id: str, private: bool | None, revision: str | None, err: bool = False) -> None:
    """Push a folder and print the URL of the commit, on stderr with `err`."""
    from merge.publish.push import plan_push, push

    url = push(plan_push(folder, repo_id, private), message="Upload merge made with merge-models", revision=revision)
    click.echo(f"pushed: {url}", err=err)


def _show_push(folder: Path, repo_id: str, private: bool | None) -> None:
    from merge.publish.push import plan_push

    plan = plan_push(folder, repo_id, private)
    total = sum(size for _, size in plan.files)
    click.echo(
        f"would push {len(plan.files)} files, {total:,} bytes, to {plan.repo_id} ({plan.visibility}), in one commit:"
    )
    for name, size in plan.files:
        click.echo(f"  {size:>14,}  {name}")
    click.echo(f"README.md:\n{plan.card}")
