"""Kinds of input of the commands that study, edit and stitch models, and of averages of training runs."""

from __future__ import annotations

from collections.abc import Mapping

import mutations as m
import studies as s
from kind import Kind

EDIT = ("-q", "-o", "out")
READS = (*s.TEXT, *EDIT)
STITCHES = (
    ("stitch-models", "a", "b", "--at", "1:0", "--map", "permutation", *READS),
    ("stitch-models", "a", "b", "--at", "0:1", "--map", "affine", *READS),
    ("stitch-models", "b", "a", "--at", "1:0", "--map", "scale", *READS, "--dry-run"),
)
PRUNES = (
    ("edit-layers", "prune-heads", "a", "--score", "activation", "--count", "1", *READS),
    ("edit-layers", "prune-neurons", "a", "--neurons", "neurons.txt", *EDIT),
    ("edit-layers", "prune-neurons", "a", "--redundant", *EDIT),
    ("edit-layers", "prune-embeddings", "a", "--text", "few.txt", "--allow-unknown", *EDIT),
)
REPAIRS = (
    ("edit-layers", "apply", "a", "--plan", "affine(A0->A1)", *READS),
    ("edit-layers", "apply", "a", "b", "--plan", "A0, B0", "--repair", "seam", *READS),
    ("edit-layers", "apply", "a", "b", "--plan", "A0, B0", "--align", "weights", *EDIT),
)
AVERAGES = (
    ("merge-models", "run", "--last", "2", *EDIT),
    ("merge-models", "run", "--ema", "0.5", *EDIT),
    ("merge-models", "run/checkpoint-10", "run/checkpoint-20", "run/checkpoint-30", "--ema", "0.5", *EDIT),
)
PLANNED = (
    ("edit-layers", "apply", "a", "b", "--plan", "{}", *EDIT),
    ("edit-layers", "apply", "a", "b", "--plan", "{}", *EDIT, "--dry-run"),
)
RUNS = (s.RUN_PLANE, s.RUN_MONOTONIC)
OF_A = (*s.ON_TEXT, *s.ON_ROWS, *STITCHES, *PRUNES, *REPAIRS)
OF_TEXT = (
    *s.ON_TEXT,
    *STITCHES[:2],
    PRUNES[0],
    *REPAIRS[:2],
    ("edit-layers", "prune-embeddings", "a", "--text", "{}", *EDIT),
)
OPTIONS = (
    *((*words, option, "{n}") for words in s.ON_TEXT for option in ("--samples", "--seed", "--max-length")),
    *((*words, option, "{n}") for words in s.ON_ROWS for option in ("--limit", "--seed", "--labels")),
    *((*words, option, "{n}") for words in (s.CURVE, s.SIMPLEX) for option in ("--rate", "--train-steps", "--rows-a-step")),
    (*s.FEATURES, *s.TEXT, "--lam", "{n}"), (*s.LESION, *s.TEXT, "--layers", "{n}"), (*s.STITCH, *s.TEXT, "--ridge", "{n}"),
    (*s.LESION[:5], "--only", "orders", *s.TEXT, "--order", "{n}"), (*s.STITCH[:-1], "low-rank", *s.TEXT, "--rank", "{n}"),
    (*s.MONOTONIC, "--head-seed", "{n}"), (*s.SIMPLEX, "--tolerance", "{n}"), (*s.SIMPLEX, "--volume", "{n}"),
    (*s.PLANE[:-3], "{n}", *s.PLANE[-2:]), (*s.CURVE, "--bends", "{n}"), (*s.SIMILARITY, *s.TEXT, "--max-rows", "{n}"),
    (*STITCHES[0][:4], "{n}", *STITCHES[0][5:]), (*STITCHES[1], "--ridge", "{n}"), (*STITCHES[0], "--samples", "{n}"),
    (*PRUNES[0][:6], "{n}", *READS), ("edit-layers", "prune-heads", "a", "--heads", "{n}", *EDIT),
    ("edit-layers", "prune-neurons", "a", "--neurons", "{n}", *EDIT), (*PRUNES[2], "--tolerance", "{n}"),
    ("edit-layers", "prune-neurons", "a", "--score", "weight-norm", "--share", "{n}", *EDIT),
    (*REPAIRS[1], "--ridge", "{n}"), (*REPAIRS[1], "--heal-steps", "1", "--heal-rate", "{n}"),
    ("edit-layers", "drop", "a", "--layers", "{n}", *EDIT), ("edit-layers", "reorder", "a", "--order", "{n}", *EDIT),
    (*AVERAGES[0][:3], "{n}", *EDIT), (*AVERAGES[1][:3], "{n}", *EDIT),
)  # fmt: skip

STUDY_KINDS: Mapping[str, Kind] = {
    "study weights": Kind(16, ("a/model.safetensors",), m.mutated_safetensors, OF_A),
    "study configs": Kind(16, ("a/config.json",), m.mutated_json, OF_A),
    "study tokenizers": Kind(8, ("a/tokenizer.json", "a/tokenizer_config.json"), m.mutated_json, OF_A),
    "study texts": Kind(10, ("texts.txt",), m.mutated_bytes, OF_TEXT),
    "study rows": Kind(6, ("rows.jsonl",), m.mutated_lines, s.ON_ROWS),
    "study tasks": Kind(4, ("task.yaml",), m.mutated_yaml, s.ON_ROWS),
    "study plans": Kind(14, ("plan.txt",), m.mutated_plan, PLANNED),
    "study plan documents": Kind(10, ("plan.json",), m.mutated_json, PLANNED),
    "study recipes of layers": Kind(10, ("layers.yaml",), m.mutated_yaml,
                                    (("edit-layers", "apply", "{}", "-q", "--dry-run"), ("edit-layers", "apply", "{}", *EDIT))),
    "study recipes of slices": Kind(10, ("slices.yaml",), m.mutated_yaml,
                                    (("merge-models", "-q", "--dry-run", "--recipe", "{}"),
                                     ("merge-models", "--print-recipe", "--recipe", "{}"))),
    "study neurons": Kind(4, ("neurons.txt",), m.mutated_bytes, (PRUNES[1],)),
    "study runs": Kind(12, ("run/checkpoint-20/trainer_state.json",), m.mutated_json, AVERAGES),
    "study checkpoints": Kind(6, ("run/checkpoint-20/config.json", "run/checkpoint-20/model.safetensors"), m.mutated_bytes,
                              (*AVERAGES, *RUNS)),
    "study sweeps": Kind(5, ("basins/basins.json",), m.mutated_json, ((*s.PLANE, "--basins", "basins"),)),
    "study options": Kind(24, ("texts.txt",), m.unchanged, OPTIONS),
    **{f"study results of {words[1]}": Kind(1, (f"studies/{words[1]}/results.json",), m.mutated_json, (words,))
       for words in s.KEPT},
    **{f"study results of {words[1]}, as JSON": Kind(1, (f"studies/{words[1]}/results.json",), m.mutated_json,
                                                     ((*words, "--json"),)) for words in s.KEPT},
    "study points": Kind(4, ("studies/plane/surface/*.jsonl",), m.mutated_lines, ((*s.KEPT[5], "--levels", "1"),)),
    **{f"study states of {words[1]}": Kind(3, (f"studies/{words[1]}-stopped/surface/*.safetensors",), m.mutated_safetensors,
                                           ((*words[:-1], f"{words[-1]}-stopped"),))
       for words in s.KEPT if words[1] in s.GOES_ON},
    **{f"study points of {words[1]}": Kind(2, tuple(f"studies/{words[1]}/*/*/{name}" for name in s.OF_A_POINT), m.mutated_bytes,
                                           ((*words, "--points", "5") if words[1] == "curve" else (*words, "--samples", "2"),))
       for words in s.KEPT if words[1] in s.GOES_ON},
}  # fmt: skip
