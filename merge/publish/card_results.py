"""Write evaluation results into the model card of a folder that merge-models, edit-layers or stitch-models wrote."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from merge.disk.atomic import replacing
from merge.disk.documents import read_object
from merge.errors import CheckpointError, OutputError
from merge.publish.card import MANIFESTS, card_text
from merge.publish.edited_card import with_scores
from merge.publish.results_file import read_results

# Key of a manifest -> kind of its value.
EDIT_KINDS = {"architecture": "text", "models": "a list", "notes": "a list", "files": "keys and values"}
MANIFEST_KINDS = {"name": "text", "architecture": "text", "method": "text", "models": "a list", "licences": "a list"}
MANIFEST_KINDS |= {"alignment": "a list", "notes": "a list", "files": "keys and values", "repair": "keys and values"}


def add_results(folder: Path, results_file: Path) -> int:
    """Write the scores of a written model and its inputs from results.json into its card, and return their number.

    Raises:
        CheckpointError: the folder was not written by merge-models, or results.json holds no score of its model.
        OutputError: the folder cannot be written; its card is as it was.
    """
    from merge.checkpoints.open import open_checkpoint

    path = next((folder / name for name in MANIFESTS if (folder / name).is_file()), folder / MANIFESTS[0])
    facts, results = _read_manifest(path), read_results(results_file, CheckpointError)
    merged_hash = open_checkpoint(str(folder)).content_hash
    try:
        input_hashes = {m["content_hash"] for m in facts["models"]}
        records = [r for r in results if _concerns(r, merged_hash, input_hashes)]
        if not any(_concerns(r, merged_hash, set()) for r in records):
            raise CheckpointError(
                f"{results_file} holds no score of {folder}. Evaluate it first: evaluate-models hans {folder}"
            )
        if _is_merge(facts):
            recipe = (folder / "recipe.yaml").read_text(encoding="utf-8")
            text = card_text(folder, {**facts, "recipe_yaml": recipe}, records)
        else:
            text = with_scores(
                (folder / "README.md").read_text(encoding="utf-8"), folder.resolve().name, facts, records
            )
        facts["files"]["README.md"] = hashlib.sha256(text.encode()).hexdigest()
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{results_file} was not written by evaluate-models, or {path} not by merge-models "
            f"({type(error).__name__}: {error})."
        ) from error
    except OSError as error:
        raise CheckpointError(f"{error.filename}: {error.strerror}.") from error
    manifest = json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
    try:
        with replacing(folder / "README.md") as new_card, replacing(path) as new_manifest:
            new_card.write_bytes(text.encode())
            new_manifest.write_bytes(manifest.encode())
    except OSError as error:
        raise OutputError(f"{folder}: its card cannot be written: {error.strerror}. It is as it was.") from error
    return len(records)


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise CheckpointError(
            f"{path}: No such file. merge-models card needs a merged folder, or an edited one, and a results.json."
        )
    facts = read_object(path, CheckpointError, EDIT_KINDS)
    return read_object(path, CheckpointError, MANIFEST_KINDS) if _is_merge(facts) else facts


def _is_merge(facts: Mapping[str, Any]) -> bool:
    """Return whether a manifest is that of a merge; edits, stitches and prunings have no method."""
    return "method" in facts


def _concerns(record: Mapping[str, Any], merged_hash: str, input_hashes: set[str]) -> bool:
    if record["kind"] == "scores":
        return record["model"].get("hash") in {merged_hash, *input_hashes}
    return record["kind"] == "barrier" and {record["a"].get("hash"), record["b"].get("hash")} <= input_hashes
