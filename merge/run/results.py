"""Results of the Python API: a model folder in a workspace that can be loaded, saved and pushed, and how it was made."""

from __future__ import annotations

import abc
import html
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.checkpoints.checkpoint import Checkpoint
from merge.checkpoints.open import open_checkpoint
from merge.disk.staging import check_output, staged
from merge.disk.workspace import Workspace
from merge.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from merge.alignment.align import Aligned
    from merge.alignment.evidence.proof import Proof
    from merge.alignment.evidence.quality import Quality
    from merge.layers.record import EditReport
    from merge.run.report import Report
    from merge.symmetry.transform import Transform


@dataclass(frozen=True)
class WrittenModel(abc.ABC):
    """A checkpoint folder that was written and checked by loading it.

    Attributes:
        folder: of the checkpoint; in a workspace that goes away with this record, unless an output was asked for.
    """

    folder: Path
    _workspace: Workspace = field(repr=False, compare=False)

    @cached_property
    def model(self) -> Any:
        """The model, loaded: a `SentenceTransformer` where the folder is one, else of the class that config.json names."""
        if self.checkpoint.modules:
            from sentence_transformers import SentenceTransformer

            return SentenceTransformer(str(self.folder), device="cpu")
        from merge.checkpoints.transformers_model import loading, model_class

        with loading():
            return model_class(self.checkpoint.config).from_pretrained(self.folder, dtype="auto")

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The folder, opened by its headers: it can be given to every function in place of a path."""
        return self._open(self.folder)

    def _open(self, folder: Path) -> Checkpoint:
        """Open a written folder; one in the workspace is named without it."""
        opened = open_checkpoint(str(folder))
        return replace(opened, source=folder.name) if folder.is_relative_to(self._workspace.folder) else opened

    def save(self, output: str | Path, force: bool = False) -> Path:
        """Copy the folder to `output`, whole or not at all, and return it.

        Raises:
            OutputError: it exists (without `force`), or cannot be written.
        """
        output = Path(output).expanduser()
        check_output(output, force, [self.folder])
        with staged(output) as temporary:
            shutil.copytree(self.folder, temporary, dirs_exist_ok=True)
        return output

    def push(self, repo_id: str, private: bool | None = None, revision: str | None = None) -> str:
        """Push the folder to the Hub as `repo_id` (`org/name`) in one commit, and return the URL of the commit.

        Raises:
            HubError: the Hub refused, or cannot be reached.
        """
        from merge.publish.push import plan_push, push

        message = "Upload merge made with merge-models"
        return push(plan_push(self.folder, repo_id, private), message=message, revision=revision)

    @property
    @abc.abstractmethod
    def notes(self) -> tuple[str, ...]:
        """What was decided on the way, as the command prints it."""

    @abc.abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Return how the model was made, as JSON holds it: what the command prints with --json."""

    @abc.abstractmethod
    def __str__(self) -> str:
        """Return the text that the command prints."""

    def __rich__(self) -> str:
        from rich.markup import escape

        return escape(str(self))

    def _repr_html_(self) -> str:
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        facts = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for name, value in self._rows()
        )
        return f"<table>{facts}</table>" + (f"<ul>{notes}</ul>" if notes else "")

    @abc.abstractmethod
    def _rows(self) -> Sequence[tuple[str, str]]:
        """Return (name, value) of what a notebook shows."""


@dataclass(frozen=True)
class MergedModel(WrittenModel):
    """A merged model.

    Attributes:
        report: what the run did.
    """

    report: Report

    @property
    def folders(self) -> dict[str, Path]:
        """Name -> folder of every checkpoint that was written; one but for `heads="keep-all"`."""
        return {
            output.folder or self.folder.name: self.folder / output.folder for output in self.report.plan.heads.outputs
        }

    @cached_property
    def checkpoint(self) -> Checkpoint:
        if len(self.folders) > 1:
            raise UsageError(
                f"this merge wrote {len(self.folders)} models, one a head: {', '.join(self.folders)}. Load one of `.folders`."
            )
        return self._open(next(iter(self.folders.values())))

    @property
    def notes(self) -> tuple[str, ...]:
        return self.report.notes

    def to_json(self) -> dict[str, Any]:
        from merge.run.manifest import report_facts

        return {name: value for name, value in report_facts(self.report).items() if name != "recipe_yaml"}

    def plot(self) -> Figure:
        """Return the plot of match quality, a panel for each aligned model.

        Raises:
            UsageError: nothing was matched.
        """
        return _quality_plot(self.report.rebased.aligned)

    def __str__(self) -> str:
        from merge.run.report_text import report_text

        return report_text(self.report, dry_run=False)

    def _rows(self) -> Sequence[tuple[str, str]]:
        facts = self.to_json()
        aligned = [(f"aligned {one.source}", _alignment_line(one)) for one in self.report.rebased.aligned]
        return (
            ("merged model", f"{facts['architecture']}, {self.report.bytes:,} bytes"),
            ("models", ", ".join(model["source"] for model in facts["models"])),
            ("method", _settings_line(facts["method"], facts["recipe"].get("settings", {}))),
            *aligned,
        )


@dataclass(frozen=True)
class AlignedModel(WrittenModel):
    """A model whose units were put into the order of another's; its function is what it was.

    Attributes:
        aligned: the transform, its proof and its match quality.
    """

    aligned: Aligned

    @property
    def transform(self) -> Transform:
        """The group elements that were applied, one a named axis."""
        return self.aligned.transform

    @property
    def proof(self) -> Proof:
        """How far the outputs moved: largest difference in standard deviations, and the bound it was held to."""
        return self.aligned.proof

    @property
    def quality(self) -> Quality | None:
        """How alike matched units are, by axis; None where a common start said that nothing has to move."""
        return self.aligned.quality

    @property
    def notes(self) -> tuple[str, ...]:
        return ()

    def to_json(self) -> dict[str, Any]:
        return self.aligned.to_json()

    def plot(self) -> Figure:
        """Return the plot of match quality.

        Raises:
            UsageError: nothing was matched.
        """
        return _quality_plot([self.aligned])

    def __str__(self) -> str:
        from merge.run.report_text import aligned_text

        return "\n".join(aligned_text(self.aligned))

    def _rows(self) -> Sequence[tuple[str, str]]:
        return (
            ("aligned model", self.aligned.source),
            ("reference", self.aligned.reference),
            ("matched", _alignment_line(self.aligned)),
        )


@dataclass(frozen=True)
class EditedModel(WrittenModel):
    """A model with other layers.

    Attributes:
        report: what the edit did.
    """

    report: EditReport

    @property
    def notes(self) -> tuple[str, ...]:
        return self.report.notes

    def to_json(self) -> dict[str, Any]:
        from merge.layers.record import edit_facts

        return edit_facts(self.report)

    def __str__(self) -> str:
        from merge.layers.plans.formatted import format_plan
        from merge.layers.plans.numbers import format_layers

        plan = self.report.plan
        if plan.copies and len(self.report.assembly.models) == 1:
            shown = format_layers([layer for ((_, layer),) in plan.layers])
        else:
            shown = format_plan(plan, self.report.made.names)
        return f"{self.report.checkpoint.source}: {self.report.total} layers -> {len(plan.layers)}: {shown}"

    def _rows(self) -> Sequence[tuple[str, str]]:
        return (("edited model", self.report.checkpoint.source), ("layers", str(self)))


def _alignment_line(aligned: Aligned) -> str:
    moved = ", ".join(f"{kind} {count} of {units}" for kind, (count, units) in aligned.moved.items()) or "nothing"
    proof = aligned.proof
    return (
        f"by {aligned.by}; units that moved: {moved}; outputs changed by {proof.error:.1e} standard deviations "
        f"(bound {proof.bound:g}, {proof.texts} inputs)"
    )


def _settings_line(method: str, settings: Mapping[str, Any]) -> str:
    stated = ", ".join(f"{name}={value}" for name, value in settings.items())
    return f"{method} ({stated})" if stated else method


def _quality_plot(aligned: Sequence[Aligned]) -> Figure:
    from merge.publish.alignment_plot import quality_figure

    records = [record for one in aligned if (record := one.to_json()).get("quality", {}).get("axes")]
    if not records:
        raise UsageError("nothing was matched, so there is no match quality to plot.")
    return quality_figure(records)
