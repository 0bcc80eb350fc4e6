"""The command recipes: list and print the recipes that come with the package."""

from __future__ import annotations

from pathlib import Path

import click

from merge.commands.sections import SectionedCommand
from merge.errors import UsageError, nearest


@click.command(cls=SectionedCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name", required=False)
def recipes_command(name: str | None) -> None:
    """List the recipes that come with the package, or print one of them; `schema` prints their JSON schema.

    \b
    Example:
      merge-models recipes
      merge-models recipes ties > ties.yaml
    """
    folder = recipe_folder()
    files = {path.stem: path for path in sorted(folder.glob("*.y*ml"))}
    if name is None:
        width = max(map(len, files))
        for stem, path in files.items():
            click.echo(f"{stem:<{width}}  {_purpose(path)}")
        click.echo(
            "\nPrint one: merge-models recipes NAME > NAME.yaml. Then: merge-models --recipe NAME.yaml", err=True
        )
        return
    files["schema"] = folder / "recipe.schema.json"
    stem = name.removesuffix(".yaml").removesuffix(".yml")
    if stem not in files:
        raise UsageError(f"no recipe is named {name!r}.{nearest(stem, files)}")
    click.echo(files[stem].read_text(encoding="utf-8"), nl=False)


def recipe_folder() -> Path:
    """Return the folder of the recipes: inside the installed package, or beside it in a clone."""
    package = Path(__file__).resolve().parents[1]
    return next(folder for folder in (package / "recipes", package.parent / "recipes") if folder.is_dir())


def _purpose(path: Path) -> str:
    """Return the second line of a recipe, the sentence that says what it shows."""
    return path.read_text(encoding="utf-8").splitlines()[1].removeprefix("# ")
