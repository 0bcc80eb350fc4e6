"""The model card of an edited, stitched or pruned model: what it was made of, how, and its scores once they are measured."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from merge.checkpoints.checkpoint import Checkpoint
from merge.disk.documents import check_header
from merge.publish.card import header, licence_of, loading_lines, score_lines
from merge.publish.model_index import model_index
from merge.publish.model_library import library_of

HEADER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
SCORES = re.compile(r"## Scores\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
NEXT_SECTION = re.compile(r"^## (?:Notes|Use)$", re.MULTILINE)


def edited_card(
    folder: Path,
    made: Sequence[str],
    models: Sequence[Checkpoint],
    architecture: str,
    manifest: str,
    notes: Sequence[str],
    name: str,
) -> str:
    """Return README.md of a written folder.

    Args:
        folder: with its config.json and modules, which say what loads it.
        made: paragraphs on what the model is and how it was made.
        models: that it was made of. The licence is theirs if all state the same one.
        manifest: the file that holds versions and hashes.
    """
    library = library_of(folder)
    licences = [licence_of(model.folder / "README.md") for model in models]
    front = header(architecture, library, ["merge-models"], licences, [m.source for m in models if m.commit])
    table = ["| model | commit | SHA-256 of its content |", "| --- | --- | --- |"]
    table += [f"| {m.source} | {m.commit or 'local'} | `{m.encoder.content_hash[:16]}` |" for m in models]
    lines = [f"# {name}", "", *(line for paragraph in made for line in (paragraph, "")), *table, ""]
    if notes:
        lines += ["## Notes", "", *(f"- {note}" for note in notes), ""]
    lines += [
        "## Use",
        "",
        *loading_lines(name, architecture, library),
        "",
        f"Files, versions and hashes: `{manifest}`.",
    ]
    return _with_header(front, "\n".join([*lines, ""]))


def with_scores(card: str, name: str, facts: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> str:
    """Return an edited model's card with its scores, and those of the models it was made of, in place of earlier ones."""
    body = SCORES.sub("", HEADER.sub("", card).lstrip("\n"))
    section = "\n".join(["## Scores", "", *score_lines(results, facts, "this model"), "", ""])
    after = NEXT_SECTION.search(body)
    at = after.start() if after else len(body)
    made_of = {model["content_hash"] for model in facts["models"]}
    own = [r for r in results if r["kind"] == "scores" and r["model"]["hash"] not in made_of]
    front = {key: value for key, value in (check_header(card) or {}).items() if key != "model-index"}
    if index := model_index(name, own):
        front["model-index"] = index
    return _with_header(front, body[:at].rstrip("\n") + "\n\n" + section + body[at:])


def _with_header(front: Mapping[str, Any], body: str) -> str:
    return f"---\n{yaml.safe_dump(dict(front), sort_keys=False, allow_unicode=True)}---\n\n{body}"
