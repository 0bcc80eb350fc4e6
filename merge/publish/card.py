"""The model card: what was merged, what alignment did, how it scores; README.md of the output folder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from merge.errors import CheckpointError
from merge.publish.model_index import model_index

PIPELINES = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
}
TAGS = ["merge", "merge-models"]


def write_card(folder: Path, facts: Mapping[str, Any], results: Sequence[Mapping[str, Any]] = ()) -> None:
    """Write README.md from the facts of a run, or rewrite it with evaluation results (records of results.json)."""
    front = yaml.safe_dump(metadata(facts, results), sort_keys=False, allow_unicode=True)
    body = "\n".join([f"---\n{front}---", "", *_body(facts, results), ""])
    (folder / "README.md").write_text(body, encoding="utf-8")


def add_results(folder: Path, results_file: Path) -> int:
    """Rewrite the card of a merged checkpoint with the scores of its own model in results.json; return how many.

    Raises:
        CheckpointError: the folder was not written by merge-models, or results.json holds nothing about it.
    """
    from merge.checkpoints.checkpoint import open_encoder
    from merge.disk.hashes import file_hash

    facts, results = _read_json(folder / "merge.json"), _read_json(results_file)
    own = open_encoder(str(folder)).content_hash
    try:
        known = {m["content_hash"] for m in facts["models"]}
        wanted = [r for r in results["results"] if _about(r, own, known)]
        if not any(_about(r, own, set()) for r in wanted):
            raise CheckpointError(
                f"{results_file} holds no score of {folder}. Evaluate it first: evaluate-models hans {folder}"
            )
        recipe = (folder / "recipe.yaml").read_text(encoding="utf-8")
        write_card(folder, {**facts, "recipe_yaml": recipe}, wanted)
        facts["files"]["README.md"] = file_hash(folder / "README.md")
    except (KeyError, TypeError, AttributeError) as error:
        said = f"{type(error).__name__}: {error}"
        raise CheckpointError(
            f"{results_file} is not a results.json of evaluate-models, or {folder / 'merge.json'} not of merge-models "
            f"({said})."
        ) from error
    except OSError as error:
        raise CheckpointError(f"{error.filename}: {error.strerror}.") from error
    (folder / "merge.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return len(wanted)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{path}: {error.strerror}. A card is made from a merged folder and a results.json."
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error


def _about(record: Mapping[str, Any], own: str, parents: set[str]) -> bool:
    if record["kind"] == "scores":
        return record["model"]["hash"] in {own, *parents}
    return record["kind"] == "barrier" and {record["a"]["hash"], record["b"]["hash"]} <= parents


def metadata(facts: Mapping[str, Any], results: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Return the card's YAML: base models by Hub id only, the licence only where every source states the same one."""
    ids = list(dict.fromkeys(m["source"] for m in facts["models"] if m["commit"]))
    licences = set(facts["licences"])
    out: dict[str, Any] = {"library_name": "transformers", "tags": TAGS}
    if len(licences) == 1 and None not in licences:
        out["license"] = licences.pop()
    if ids:
        out |= {"base_model": ids, "base_model_relation": "merge"}
    pipeline = next((p for ending, p in PIPELINES.items() if facts["architecture"].endswith(ending)), None)
    if pipeline:
        out["pipeline_tag"] = pipeline
    own = [
        r
        for r in results
        if r["kind"] == "scores" and r["model"]["hash"] not in {m["content_hash"] for m in facts["models"]}
    ]
    if index := model_index(facts["name"], own):
        out["model-index"] = index
    return out


def licence_of(card: Path) -> str | None:
    """Return the licence a source's own card states, or None."""
    if not card.is_file():
        return None
    found = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    try:
        stated = yaml.safe_load(found[1]) if found else None
    except (yaml.YAMLError, ValueError):
        return None
    licence = stated.get("license") if isinstance(stated, dict) else None
    return licence if isinstance(licence, str) else None


def _body(facts: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        f"# {facts['name']}",
        "",
        f"{len(facts['models'])} models merged with merge-models by `{facts['method']}`.",
        "",
    ]
    lines += ["| model | commit | SHA-256 of its content |", "| --- | --- | --- |"]
    lines += [f"| {m['source']} | {m['commit'] or 'local'} | `{m['content_hash'][:16]}` |" for m in facts["models"]]
    lines += ["", "## Alignment", "", *(_alignment(facts) or ["None: the models were averaged as they are."])]
    if results:
        lines += ["", "## Scores", "", *_scores(results, facts)]
    if facts["notes"]:
        lines += ["", "## Notes", "", *(f"- {note}" for note in facts["notes"])]
    lines += ["", "## Recipe", "", "```yaml", facts["recipe_yaml"].strip(), "```", ""]
    lines += ["Files, versions and hashes: `merge.json`. Load it with:", "", "```python"]
    auto = next((a for ending, a in AUTO.items() if facts["architecture"].endswith(ending)), "AutoModel")
    return [*lines, f"from transformers import {auto}", f"model = {auto}.from_pretrained({facts['name']!r})", "```"]


AUTO = {
    ending: f"AutoModel{ending}"
    for ending in (*PIPELINES, "ForMultipleChoice", "ForNextSentencePrediction", "ForPreTraining")
}


def _alignment(facts: Mapping[str, Any]) -> list[str]:
    lines = []
    for a in facts["alignment"]:
        kept = ", ".join(a["kept"]) or "nothing"
        if (start := a.get("common_start")) and start["common"]:
            lines.append(
                f"`{a['model']}` was kept as it is: it and the first model have one common start ({start['says']})."
            )
            continue
        lines.append(f"`{a['model']}` was aligned to the first model by {a['by']}; axes moved: **{kept}**.")
        if a["score"]:
            columns = ("axes", "matched by", "inside heads", a["score"], "along the line")
            lines += ["", f"| {' | '.join(columns)} |", "| --- | --- | --- | --- | --- |"]
            lines += [
                f"| {', '.join(c['axes']) or 'nothing'}{' (rotated)' * c['rotated']} | {c['by'] or ''} | {c['basis'] or ''} "
                f"| {_figure(c['score'])} | {_figure(c['line'])} |"
                for c in a["candidates"]
            ]
        moved = ", ".join(f"{kind} {m} of {n}" for kind, (m, n) in a["moved"].items())
        lines += ["", f"Units that changed place: {moved}.", "", *_quality(a.get("quality")), ""]
        p = a["proof"]
        lines.append(
            f"Proof: before any averaging, moving its units changed its {', '.join(p['outputs'])} by {p['error']:.1e} standard "
            f"deviations (bound {p['bound']:g}, {p['dtype']}, {p['texts']} inputs)."
        )
    if repair := facts.get("repair"):
        said = "; ".join(f"{k['kind']} {_share(k['before'])} of it, now {_share(k['after'])}" for k in repair["kinds"])
        lines += [
            "",
            f"Repair: units had lost variance against the models (median unit): {said or 'none was repaired'}.",
        ]
    if lines and facts["calibration"]:
        lines += ["", f"Calibration text: {facts['calibration']}."]
    return lines


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _quality(quality: Mapping[str, Any] | None) -> list[str]:
    """Return how alike the matched units are; nothing for a run that did not measure it."""
    if quality is None:
        return []
    lines = [f"| axes | {quality['measure']} | random units | shuffled scores | p | in place | moved by |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    lines += [
        f"| {k['kind']} | {k['score']:.3f} | {k['random']:.3f} | {k['shuffled']:.3f} | {k['p']:.3f} | {k['still']:.0%} "
        f"| {quality['groups'][k['kind']]} |"
        for k in quality["kinds"]
    ]
    before, after = quality["distance"]
    text = "Of units matched at random, and of the same scores matched in random order: what chance makes of them."
    return [*lines, "", f"{text} Distance of gauge-fixed weights, |A - B| / |A|: {before:.3f}, aligned {after:.3f}."]


def _scores(results: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> list[str]:
    names = {m["content_hash"]: m["source"] for m in facts["models"]}
    scores = [r for r in results if r["kind"] == "scores"]
    lines = []
    if scores:
        lines += ["| model | task | rows | scores | loss |", "| --- | --- | --- | --- | --- |"]
    for r in scores:
        who = names.get(r["model"]["hash"], "**this merge**")
        lines.append(
            f"| {who} | {r['task']} ({r['data']}) | {r['n']} | {_named(r['scores'])} | {_figure(r['scores'].get('loss'))} |"
        )
    for r in results:
        if r["kind"] == "barrier":
            lines += [
                "",
                f"Loss barrier on {r['task']} ({r['data']}, {r['n']} rows), {len(r['curves'][0]['lam'])} points:",
                "",
            ]
            lines += ["| path | barrier | calibrated | epsilon | convexity gap |", "| --- | --- | --- | --- | --- |"]
            lines += [
                f"| {c['name']} | {_figure(c['barrier'])} | {_figure(c.get('calibrated_barrier'))} | {_figure(c['epsilon'])} "
                f"| {_figure(c['convexity_gap'])} |"
                for c in r["curves"]
            ]
    return lines


def _named(scores: Mapping[str, float | None]) -> str:
    """Return a task's own scores by name: CoLA has no accuracy, MRPC has two scores."""
    return ", ".join(f"{name} {_figure(value)}" for name, value in scores.items() if name != "loss") or "-"


def _figure(value: float | None) -> str:
    """Return a number for a table, "-" where there is none; results.json has null for one that is not finite."""
    return "-" if value is None else f"{value:.4f}"
