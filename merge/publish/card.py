"""The model card, README.md of the output folder: the models merged, their alignment, scores and the recipe.

Our own YAML header: huggingface_hub's ModelCardData writes its keys in another order, and its import costs half a second.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from merge.disk.documents import front_matter
from merge.publish.model_index import model_index
from merge.publish.model_library import Library, library_of

PIPELINES = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": "text-generation",
    "GPT2LMHeadModel": "text-generation",
    "ForImageClassification": "image-classification",
}
MANIFESTS = ("merge.json", "edit.json")  # of merges and stitches; of edits and prunings
TAGS = ["merge", "merge-models"]


def models_inside(folder: Path) -> str:
    """Return ' The models are inside: X/a, X/b.' for a folder of --heads keep-all, which holds one for each head; else ''."""
    inside = sorted({path.parent for name in MANIFESTS for path in folder.glob(f"*/{name}")})
    return f" The models are inside: {', '.join(map(str, inside))}." if inside else ""


def write_card(folder: Path, facts: Mapping[str, Any], results: Sequence[Mapping[str, Any]] = ()) -> None:
    """Write README.md from the facts of a run (merge.json) and evaluation results (records of results.json)."""
    (folder / "README.md").write_text(card_text(folder, facts, results), encoding="utf-8", newline="\n")


def card_text(folder: Path, facts: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> str:
    """Return README.md of a merged folder."""
    library = library_of(folder)
    front = yaml.safe_dump(metadata(facts, results, library), sort_keys=False, allow_unicode=True)
    return "\n".join([f"---\n{front}---", "", *_body(facts, results, library), ""])


def metadata(
    facts: Mapping[str, Any], results: Sequence[Mapping[str, Any]] = (), library: Library | None = None
) -> dict[str, Any]:
    """Return the card's YAML header: base models that are Hub ids, and the licence if every input states the same one.

    Args:
        library: of the folder, where transformers alone does not load it.
    """
    ids = list(dict.fromkeys(m["source"] for m in facts["models"] if m["commit"]))
    out = header(facts["architecture"], library, TAGS, facts["licences"], ids, "merge")
    inputs = {m["content_hash"] for m in facts["models"]}
    merged_scores = [r for r in results if r["kind"] == "scores" and r["model"]["hash"] not in inputs]
    if index := model_index(facts["name"], merged_scores):
        out["model-index"] = index
    return out


def header(
    architecture: str,
    library: Library | None,
    tags: Sequence[str],
    licences: Sequence[str | None],
    base_models: Sequence[str],
    relation: str | None = None,
) -> dict[str, Any]:
    """Return what the YAML header of every card states.

    Args:
        library: of the folder, where transformers alone does not load it.
        licences: of the inputs; the card states one only if all state the same.
        base_models: Hub ids of the inputs.
        relation: of the model to them, as the Hub names it.
    """
    out: dict[str, Any] = {"library_name": "transformers", "tags": list(tags)}
    if library is not None:
        out = {"library_name": library.name, "tags": [*library.tags, *tags]}
    if len(set(licences)) == 1 and licences[0] is not None:
        out["license"] = licences[0]
    if base_models:
        out |= {"base_model": list(base_models)} | ({} if relation is None else {"base_model_relation": relation})
    pipeline = next((p for ending, p in PIPELINES.items() if architecture.endswith(ending)), None)
    if library is not None or pipeline:
        out["pipeline_tag"] = pipeline if library is None else library.pipeline
    return out


def licence_of(card: Path) -> str | None:
    """Return the licence in the header of a model card; None if there is no card or it states none."""
    licence = front_matter(card).get("license")
    return licence if isinstance(licence, str) else None


def _body(facts: Mapping[str, Any], results: Sequence[Mapping[str, Any]], library: Library | None = None) -> list[str]:
    base = facts.get("base")
    inputs = [("", m) for m in facts["models"]] + ([(" (base)", base)] if base else [])
    lines = [f"# {facts['name']}", "", _summary(facts), ""]
    lines += ["| model | commit | SHA-256 of its content |", "| --- | --- | --- |"]
    lines += [f"| {m['source']}{role} | {m['commit'] or 'local'} | `{m['content_hash'][:16]}` |" for role, m in inputs]
    lines += ["", "## Alignment", "", *(_alignment(facts) or ["No model was aligned before the merge."])]
    if results:
        lines += ["", "## Scores", "", *score_lines(results, facts, "this merge")]
    if facts["notes"]:
        lines += ["", "## Notes", "", *(f"- {note}" for note in facts["notes"])]
    lines += ["", "## Recipe", "", "```yaml", facts["recipe_yaml"].strip(), "```", ""]
    lines += ["Files, versions and hashes: `merge.json`. Load it with:", ""]
    return lines + loading_lines(facts["name"], facts["architecture"], library)


def loading_lines(name: str, architecture: str, library: Library | None) -> list[str]:
    """Return the Python code that loads a model, as a block of Markdown."""
    if library is not None:
        return ["```python", *(line.replace("{name}", repr(name)) for line in library.code), "```"]
    auto = loading_class(architecture)
    return ["```python", f"from transformers import {auto}", f"model = {auto}.from_pretrained({name!r})", "```"]


# Endings of class names for which transformers has an AutoModel class of the same ending.
# fmt: off
AUTO_ENDINGS = (
    "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMaskedLM", "ForCausalLM",
    "ForMultipleChoice", "ForNextSentencePrediction", "ForPreTraining", "ForImageClassification",
)
# fmt: on

# Classes with a head, and parts of a family's model, in whose place AutoModel loads the whole of it (T5Model for T5EncoderModel).
PART = re.compile(
    r"(Head|DoubleHeads|Encoder|Decoder|Text|Vision|Image|Video|Audio|Multimodal|Backbone|Base|QFormer|Causal)Model$"
)


def loading_class(architecture: str) -> str:
    """Return the class of transformers that loads a model with its head: an AutoModel class, or the model's class."""
    if architecture == "GPT2LMHeadModel":
        return "AutoModelForCausalLM"
    ending = next((ending for ending in AUTO_ENDINGS if architecture.endswith(ending)), None)
    if ending:
        return f"AutoModel{ending}"
    headless = architecture.endswith("Model") and not PART.search(architecture)
    return "AutoModel" if headless else architecture


def _summary(facts: Mapping[str, Any]) -> str:
    """Return the sentence that says what was done with how many models."""
    count, method, base = len(facts["models"]), facts["method"], facts.get("base")
    if method == "passthrough":
        return f"Made with merge-models from {count} model{'s' * (count > 1)} without averaging (`passthrough`)."
    from_base = f", from their base {base['source']}" if base else ""
    return f"{count} model{'s' * (count > 1)} merged with merge-models by `{method}`{from_base}."


def _alignment(facts: Mapping[str, Any]) -> list[str]:
    lines = []
    for a in facts["alignment"]:
        kept = ", ".join(a["kept"]) or "nothing"
        if (start := a.get("common_start")) and start["common"]:
            lines.append(
                f"`{a['model']}` was kept as it is: it and the first model have a common start ({start['says']})."
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
        lines += ["", f"Units that moved: {moved}.", "", *_quality(a.get("quality")), ""]
        p = a["proof"]
        lines.append(
            f"Proof: before any averaging, moving its units changed its {', '.join(p['outputs'])} by {p['error']:.1e} standard "
            f"deviations (bound {p['bound']:g}, {p['dtype']}, {p['texts']} inputs)."
        )
    if repair := facts.get("repair"):
        kinds = "; ".join(f"{k['kind']} {_share(k['before'])} -> {_share(k['after'])}" for k in repair["kinds"])
        lines += [
            "",
            f"Repair: variance of the merged units relative to the models', median unit, before and after: "
            f"{kinds or 'no unit was repaired'}.",
        ]
    if lines and facts["calibration"]:
        lines += ["", f"Calibration text: {facts['calibration']}."]
    return lines


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _quality(quality: Mapping[str, Any] | None) -> list[str]:
    """Return the table of match quality; nothing for a run that did not measure it."""
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
    text = "Random units and shuffled scores are matches by chance; p: the share of random matches that score as high."
    return [*lines, "", f"{text} Distance of canonical weights, |A - B| / |A|: {before:.3f}, aligned {after:.3f}."]


def score_lines(results: Sequence[Mapping[str, Any]], facts: Mapping[str, Any], own_name: str) -> list[str]:
    """Return the tables of scores and barriers; the model of the card has a name of its own in them."""
    names = {m["content_hash"]: m["source"] for m in facts["models"]}
    scores = [r for r in results if r["kind"] == "scores"]
    lines = []
    if scores:
        lines += ["| model | task | rows | scores | loss |", "| --- | --- | --- | --- | --- |"]
    for r in scores:
        model = names.get(r["model"]["hash"], f"**{own_name}**")
        lines.append(
            f"| {model} | {r['task']} ({r['data']}) | {r['n']} | {_named(r['scores'])} | {_figure(r['scores'].get('loss'))} |"
        )
    for r in results:
        if r["kind"] == "barrier":
            data = r["data"] if re.search(r"\d rows?\b", r["data"]) else f"{r['data']}, {r['n']} rows"
            lines += ["", f"Loss barrier on {r['task']} ({data}), {len(r['curves'][0]['lam'])} points:", ""]
            lines += ["| path | barrier | calibrated | epsilon | convexity gap |", "| --- | --- | --- | --- | --- |"]
            lines += [
                f"| {c['name']} | {_figure(c['barrier'])} | {_figure(c.get('calibrated_barrier'))} | {_figure(c['epsilon'])} "
                f"| {_figure(c['convexity_gap'])} |"
                for c in r["curves"]
            ]
    return lines


def _named(scores: Mapping[str, float | None]) -> str:
    """Return the scores of a task by name: CoLA has no accuracy, MRPC has two scores."""
    return ", ".join(f"{name} {_figure(value)}" for name, value in scores.items() if name != "loss") or "-"


def _figure(value: float | None) -> str:
    """Return a number for a table, "-" for None, which results.json holds for a number that is not finite."""
    return "-" if value is None else f"{value:.4f}"
