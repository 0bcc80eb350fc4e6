"""Cases of the fuzzer: which file is changed, how, and which command then reads it."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import mutations as m
from kind import Kind
from study_cases import STUDY_KINDS

DRY = ("merge-models", "-q", "--dry-run", "-o", "out")
WHOLE = ("merge-models", "-q", "-o", "out")
SCORE = ("evaluate-models", "score", "-q", "--no-cache")
DROP = ("edit-layers", "stack", "-q", "--layers", "0,0", "-o", "out", "--dry-run")
EDIT = DROP[:-1]


MERGES = ((*DRY, "a", "b"), (*DRY, "b", "a"), (*WHOLE, "a", "b"), (*DROP, "a"))
CALIBRATED = (*DRY, "a", "b", "--align", "activations", "--text", "{}")
UNITED = ((*DRY, "a", "b", "--tokenizer", "union"), (*DRY, "a", "b"), (*SCORE, "task.yaml", "a"))
CONFIGS = ((*DRY, "a", "b"), (*DRY, "b", "a"), (*DRY, "a", "b", "--heads", "average"), (*DROP, "a"))
PIPELINES = ((*DRY, "sentence", "sentence2"), (*DRY, "sentence2", "sentence"), (*DROP, "sentence"))
REPORTS = (
    ("evaluate-models", "compare", "report", "mine", "-q"),
    ("evaluate-models", "compare", "report", "mine", "-q", "--json"),
    ("merge-models", "card", "merged", "--results", "report/results.json"),
)

KINDS: Mapping[str, Kind] = {
    "weights": Kind(195, ("a/model.safetensors", "sharded/model-00001-of-00002.safetensors"), m.mutated_safetensors,
                    (*MERGES, (*DRY, "sharded", "a"), (*WHOLE, "sharded", "b"))),
    "pickles": Kind(52, ("bin/pytorch_model.bin",), m.mutated_pickle,
                    ((*DRY, "bin", "a"), (*WHOLE, "a", "bin"), (*DROP, "bin"))),
    "index": Kind(45, ("sharded/model.safetensors.index.json",), m.mutated_json,
                  ((*DRY, "sharded", "a"), (*WHOLE, "a", "sharded"))),
    "config": Kind(135, ("a/config.json",), m.mutated_json, CONFIGS),
    "modules": Kind(68, ("sentence/modules.json", "sentence/1_Pooling/config.json", "sentence/2_Dense/config.json",
                         "sentence/config_sentence_transformers.json", "sentence/sentence_bert_config.json"),
                    m.mutated_json, PIPELINES),
    "tokenizer": Kind(90, ("a/tokenizer.json", "a/tokenizer_config.json"), m.mutated_json, UNITED),
    "older tokenizers": Kind(20, ("old/vocab.json", "old/added_tokens.json", "old/special_tokens_map.json"), m.mutated_json,
                             ((*DRY, "old", "old2"), (*DRY, "old2", "old", "--tokenizer", "union"))),
    "merges": Kind(5, ("old/merges.txt",), m.mutated_bytes,
                   ((*DRY, "old", "old2"), (*DRY, "old", "old2", "--tokenizer", "union"))),
    "module weights": Kind(15, ("sentence/2_Dense/model.safetensors",), m.mutated_safetensors,
                           (*PIPELINES, (*WHOLE, "sentence2", "sentence"))),
    "scored models": Kind(20, ("a/config.json", "a/tokenizer_config.json"), m.mutated_json, ((*SCORE, "task.yaml", "a"),)),
    "merged folders": Kind(12, ("merged/README.md", "merged/recipe.yaml"), m.mutated_yaml_text,
                           (("merge-models", "push", "merged", "me/x", "--dry-run"), REPORTS[2])),
    "calibration text": Kind(10, ("text.txt", "rows.jsonl"), m.mutated_bytes,
                             ((*CALIBRATED, "--text-column", "premise"), CALIBRATED)),
    "parquet": Kind(15, ("rows.parquet",), m.mutated_parquet, ((*SCORE, "task.yaml", "a", "--data", "{}"),)),
    "json rows": Kind(15, ("rows.json",), m.mutated_json, ((*SCORE, "task.yaml", "a", "--data", "{}"),)),
    "json lines": Kind(15, ("rows.jsonl",), m.mutated_lines, ((*SCORE, "task.yaml", "a", "--data", "{}"),)),
    "hans": Kind(6, ("hans.tsv",), m.mutated_bytes,
                 (("evaluate-models", "hans", "-q", "--predictions", "hans.txt", "--data", "{}"),)),
    "rescored": Kind(10, ("report/results.json",), m.mutated_json,
                     (("evaluate-models", "score", "-q", "task.yaml", "a", "-o", "report"),)),
    "side files": Kind(38, ("a/README.md", "a/generation_config.json", "a/vocab.txt"), m.mutated_bytes,
                       ((*WHOLE, "a", "b"), (*EDIT, "a"))),
    "results": Kind(36, ("report/results.json",), m.mutated_json, REPORTS),
    "recipes": Kind(165, ("recipe.yaml", "mergekit.yaml"), m.mutated_yaml,
                    (("merge-models", "-q", "--dry-run", "--recipe", "{}"),
                     ("merge-models", "--print-recipe", "--recipe", "{}"))),
    "transforms": Kind(38, ("transform.safetensors",), m.mutated_safetensors, ((*DRY, "a", "b", "--apply", "{}"),)),
    "predictions": Kind(33, ("report/predictions/*.parquet",), m.mutated_parquet, REPORTS[:2]),
    "hans predictions": Kind(5, ("hans.txt",), m.mutated_bytes,
                             (("evaluate-models", "hans", "-q", "--predictions", "{}", "--data", "hans.tsv"),)),
    "task files": Kind(33, ("task.yaml",), m.mutated_yaml, ((*SCORE, "task.yaml", "a"),)),
    "text files": Kind(33, ("rows.jsonl", "rows.csv", "rows.tsv", "text.txt"), m.mutated_bytes,
                       (("evaluate-models", "score", "-q", "task.yaml", "a", "--data", "{}"),)),
    "manifests": Kind(34, ("merged/merge.json",), m.mutated_json,
                      (("merge-models", "verify", "merged"), REPORTS[2])),
    **STUDY_KINDS,
}  # fmt: skip
# Words of names: of the kinds that have one of them. All kinds where it is not set.
CHOSEN = os.environ.get("MERGE_MODELS_FUZZ_KINDS", "").split()
TRIED = {name: kind for name, kind in KINDS.items() if not CHOSEN or any(word in name for word in CHOSEN)}


STUDIES_SHARE = 0.5  # of their own shares: a study takes three times as long as a merge without writing
PARTS = 4  # cases are run in parts, of every fourth number each


def with_studies(part: int) -> bool:
    """Return whether a part has studies among its kinds: one does, as they are long to prepare; all where kinds are chosen."""
    return part == 0 or bool(CHOSEN)


@dataclass(frozen=True)
class Case:
    """One case: a file of the world, its new content (None: no file any more) and the command."""

    kind: str
    file: str
    content: bytes | None
    command: tuple[str, ...]
    seed: str


def make_case(number: int, world: Path, seed: int = 0) -> Case:
    """Return case `number`: the same for the same seed and world."""
    chance = random.Random(f"{seed} {number}")
    studies = with_studies(number % PARTS)
    kinds = {name: kind for name, kind in TRIED.items() if studies or name not in STUDY_KINDS}
    shares = [kind.share * (STUDIES_SHARE if name in STUDY_KINDS else 1) for name, kind in kinds.items()]
    name = chance.choices(list(kinds), shares)[0]
    kind = kinds[name]
    files = sorted(path for pattern in kind.files for path in world.glob(pattern))
    path = chance.choice(files)
    command = chance.choice(kind.commands)
    file = path.relative_to(world).as_posix()
    words = tuple(word.replace("{}", file).replace("{n}", chance.choice(m.NUMBERS)) for word in command)
    content = None if chance.random() < 0.03 else kind.mutate(path.read_bytes(), chance)
    return Case(name, file, content, words, f"{seed} {number}")


def place(case: Case, world: Path) -> None:
    """Put the changed file in its place."""
    path = world / case.file
    if case.content is None:
        m.no_file(path, random.Random(case.seed))
    else:
        path.write_bytes(case.content)
