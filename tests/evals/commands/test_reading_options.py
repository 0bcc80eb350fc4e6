"""What is read of rows, labels and predictions: as it stands, by name, or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from tiny import NLI, bert_config, save_checkpoint

import evals
from evals.heuristics.files import read_pairs
from evals.heuristics.grammar import generate
from evals.heuristics.scores import name_predictions, score
from evals.predict.predictor import make_predictor
from evals.tasks import TASKS
from evals.tasks.task import Rows
from evals.tasks.task_file import read_task
from merge.checkpoints.open import open_checkpoint
from merge.errors import MergeError, TaskError, UsageError

ROWS = [
    {"premise": "the doctor saw", "hypothesis": "a lawyer", "label": NLI[k % 3]} if k % 2 else
    {"premise": "who helped the river", "hypothesis": "the", "label": NLI[k % 3]} for k in range(12)
]  # fmt: skip


# ---- labels ----

PAIRS = generate(2)
GOLD = {pair.pair_id: pair.label for pair in PAIRS}
NUMBERS = {"entailment": "0", "non-entailment": "1"}


@pytest.mark.parametrize(
    ("spelled", "stated"),
    [
        ({"entailment": "Entailment", "non-entailment": "NOT_ENTAILMENT"}, None),
        ({"entailment": "entailment", "non-entailment": "Contradiction"}, None),
        (NUMBERS, ("entailment", "non-entailment")),
        ({"entailment": "LABEL_2", "non-entailment": "LABEL_0"}, ("contradiction", "neutral", "entailment")),
    ],
)
def test_predictions_are_scored_by_what_their_labels_mean(
    spelled: dict[str, str], stated: tuple[str, ...] | None
) -> None:
    """However a perfect prediction is spelled, it is perfect; the authors' script gives .5 for each of these."""
    written = {pair_id: spelled[label] for pair_id, label in GOLD.items()}
    assert score(PAIRS, name_predictions(written, stated, "preds.txt")).accuracy == 1.0


@pytest.mark.parametrize(
    "labels",
    [NUMBERS, {"entailment": "yes", "non-entailment": "no"}, {"entailment": "LABEL_0", "non-entailment": "entailment"}],
)
def test_labels_that_name_no_class_are_listed(labels: dict[str, str]) -> None:
    written = {pair_id: labels[label] for pair_id, label in GOLD.items()}
    with pytest.raises(TaskError, match="name no class of HANS") as caught:
        name_predictions(written, None, "preds.txt")
    assert all(repr(label) in str(caught.value) for label in labels.values() if label != "entailment")
    with pytest.raises(TaskError, match="name no class of HANS"):
        score(PAIRS, written)


def test_stated_labels_are_for_numbers_and_name_all_of_them() -> None:
    with pytest.raises(UsageError, match="this file has 'entailment'"):
        name_predictions(GOLD, ("entailment", "non-entailment"), "preds.txt")
    with pytest.raises(TaskError, match="label '2' has no name in --labels, which gives 2"):
        name_predictions({"ex0": "2"}, ("entailment", "neutral"), "preds.txt")
    with pytest.raises(TaskError, match="--labels: labels 'yes' name no class"):
        name_predictions({"ex0": "0"}, ("yes", "neutral"), "preds.txt")


def test_labels_that_contradict_a_config_are_said_for_each_model(tmp_path: Path) -> None:
    """For the model whose config names others: not where names are placeholders, nor where they are the same."""
    named, other, bare = (
        str(save_checkpoint(tmp_path / name, bert_config(labels=labels), seed=1))
        for name, labels in (("named", NLI), ("other", NLI[::-1]), ("bare", ("LABEL_0", "LABEL_1", "LABEL_2")))
    )
    scores = evals.score([named, other, bare], "mnli", data=ROWS, labels=tuple(name.upper() for name in NLI))
    notes = [[note for note in record["notes"] if "by --labels" in note] for record in scores.records]
    assert [len(of_model) for of_model in notes] == [0, 1, 0]
    assert notes[1][0].startswith(f"{other}: its classes are read as ENTAILMENT")
    assert "its config names them contradiction, neutral, entailment" in notes[1][0]
    of_line = evals.barrier(named, other, task="mnli", data=ROWS, labels=NLI, points=3).notes
    words = f"{other}: --labels names the classes of {named}, to which its own (contradiction, neutral, entailment) are"
    assert [note.startswith(words) for note in of_line].count(True) == 1


# ---- rows ----


def test_hans_is_read_as_the_hub_has_it(tmp_path: Path) -> None:
    """Integer labels, no ids, parquet, csv or JSON lines: the pairs of the published table, numbered as it is."""
    pairs = generate(1)
    rows = [
        {"premise": p.premise, "hypothesis": p.hypothesis, "label": int(p.label != "entailment"), "parse_premise": "(ROOT)",
         "heuristic": p.heuristic, "subcase": p.subcase, "template": p.template} for p in pairs
    ]  # fmt: skip
    expected = [(f"ex{k}", p.premise, p.label, p.subcase) for k, p in enumerate(pairs)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "hans.parquet")
    (tmp_path / "hans.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name in ("hans.parquet", "hans.jsonl"):
        read = read_pairs(tmp_path / name)
        assert [(p.pair_id, p.premise, p.label, p.subcase) for p in read] == expected


@pytest.mark.parametrize("features", [[{"role": "x"}], {"_type": "Sequence", "feature": {}}, {"_type": "List"}, None])
def test_a_column_of_lists_does_not_stop_a_table(tmp_path: Path, features: Any) -> None:
    """As datasets 2 and 3 write it; the class of another column is named still."""
    rows = [{"sentence": "a", "label": 1, "messages": [{"role": "user", "content": "hi"}]}]
    kinds = {"messages": features, "label": {"_type": "ClassLabel", "names": ["negative", "positive"]}}
    table = pyarrow.Table.from_pylist(rows).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": kinds}})}
    )
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    read = TASKS["sst2"].read(tmp_path / "rows.parquet", 0)
    assert (read.texts, read.gold) == ((("a",),), (1,))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.tsv", "rows.parquet"])
def test_a_text_is_read_as_it_stands(tmp_path: Path, name: str) -> None:
    """SST-2's sentences end in a blank, which a byte-level tokenizer reads."""
    text, path = "  a fine film ", tmp_path / name
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"sentence": text, "label": 1}]), path)
    elif name.endswith(".jsonl"):
        path.write_text(json.dumps({"sentence": text, "label": 1}) + "\n", encoding="utf-8")
    else:
        mark = "," if name.endswith("csv") else "\t"
        path.write_text(f"sentence{mark}label\n{text}{mark}1\n", encoding="utf-8")
    assert TASKS["sst2"].read(path, 0).texts == ((text,),)


def test_a_table_that_pandas_quoted_is_read_without_quotes_and_glue_s_own_with_them(tmp_path: Path) -> None:
    """GLUE's published QQP quotes its fields, and GLUE reads the quotes as text; a table of one's own means what it says."""
    line = '"say ""no"" now"\tplain\t1\n'
    (tmp_path / "mine.tsv").write_text(f"question1\tquestion2\tis_duplicate\n{line}", encoding="utf-8")
    (tmp_path / "task.yaml").write_text(
        "name: mine\ndata: mine.tsv\ncolumns: [question1, question2]\nlabel_column: is_duplicate\nlabels: [other, same]\n"
    )
    assert read_task(tmp_path / "task.yaml").read(None, 0).texts == (('say "no" now', "plain"),)
    assert TASKS["qqp"].read(tmp_path / "mine.tsv", 0).texts == (('"say ""no"" now"', "plain"),)


def test_multinli_s_rows_without_a_label_and_repeated_ids_are_said(tmp_path: Path) -> None:
    rows = [
        {"sentence1": "a", "sentence2": "b", "gold_label": label, "pairID": "7n"}
        for label in ("neutral", "-", "entailment")
    ]
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    read = TASKS["mnli"].read(tmp_path / "dev.jsonl", 0)
    assert (read.gold, read.ids) == ((1, 0), ("0", "1"))
    assert "1 row without a gold label left out" in read.data
    assert "ids occur twice (7n), so rows are numbered from 0" in read.data


def test_a_long_field_of_a_csv_is_read(tmp_path: Path) -> None:
    """The csv module's own limit is 131,072 characters."""
    (tmp_path / "a.csv").write_text(f"sentence,label\n{'a' * 200_000},1\n", encoding="utf-8")
    assert len(TASKS["sst2"].read(tmp_path / "a.csv", 0).texts[0][0]) == 200_000


# ---- errors of a model's code ----


def predicted(config: dict[str, Any], folder: Path, texts: list[tuple[str, str]]) -> str:
    """Return the one line with which predicting rows is refused."""
    predictor = make_predictor(open_checkpoint(str(save_checkpoint(folder, config, seed=1))), cache=False)
    rows = Rows(tuple(texts), (0,) * len(texts), NLI, "made", "test", tuple(map(str, range(len(texts)))))
    with pytest.raises(MergeError) as caught:
        predictor.logits(predictor.encode(rows), f"predicting mnli with {folder}")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_segments_that_a_model_does_not_know_are_one_line(tmp_path: Path) -> None:
    """Segments of pairs for a model that knows one: the model, and the table that is too small."""
    message = predicted(bert_config(type_vocab_size=1), tmp_path / "a", [("the doctor", "saw"), ("who", "a")])
    assert message.startswith(f"{tmp_path / 'a'}: ")
    assert "type_vocab_size" in message


def test_the_row_that_a_batch_fails_on_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is halved down to the row; the rows beside it are predicted."""
    folder = save_checkpoint(tmp_path / "a", seed=1)
    predictor = make_predictor(open_checkpoint(str(folder)), cache=False)
    texts = [("the doctor", "saw")] * 5 + [("river river", "who")] + [("the lawyer", "saw")] * 2
    rows = Rows(tuple(texts), (0,) * 8, NLI, "made", "test", tuple("abcdefgh"))
    encoded = predictor.encode(rows)
    whole = type(predictor.model).forward

    def fails_on_river(self: Any, **batch: Any) -> Any:
        if bool((batch["input_ids"] == 15).any()):
            raise ValueError("not this\none")
        return whole(self, **batch)

    assert predictor.model is not None
    monkeypatch.setattr(type(predictor.model), "forward", fails_on_river)
    with pytest.raises(
        TaskError, match="predicting x: BertForSequenceClassification failed on row 6: ValueError: not this one"
    ):
        predictor.logits(encoded, "predicting x")
    assert torch.is_inference_mode_enabled() is False


def test_an_empty_results_folder_is_said_to_be_empty(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no scores") as caught:
        evals.compare(tmp_path, "mnli")
    assert "Known:" not in str(caught.value)
