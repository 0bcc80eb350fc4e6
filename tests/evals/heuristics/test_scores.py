"""HANS scores equal what ten lines count, and what the authors published."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import json
import os
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from quick import quick_on

from evals.heuristics.files import read_pairs, read_predictions
from evals.heuristics.grammar import HansPair, generate
from evals.heuristics.scores import HansTable, fold, gold_by_position, official_text, score, write_predictions
from merge.errors import TaskError

DATA = Path(os.environ.get("MERGE_MODELS_DATA") or Path(__file__).parents[4] / "shared" / "data") / "hans"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs the evaluation data in ../shared/data")

ENTAILED, OTHER = "entailment", "non-entailment"

# Accuracy of the published predictions: entailed, then non-entailed, by lexical overlap, subsequence and constituent.
PUBLISHED = {
    "bert_preds": [0.9464, 0.9932, 0.9844, 0.1640, 0.0386, 0.1612],
    "esim_heur_preds": [0.9820, 0.9978, 0.9852, 0.0098, 0.0180, 0.0080],
    "decomp_attn_heur_preds": [0.9892, 0.9956, 0.9666, 0.0082, 0.0238, 0.0330],
    "spinn_preds_heur": [0.9578, 0.9556, 0.9318, 0.0214, 0.0590, 0.1052],
}
CELLS = [(name, label) for label in (ENTAILED, OTHER) for name in ("lexical_overlap", "subsequence", "constituent")]

# Six pairs by hand, in an order that is not the alphabet's; h2 is right 1 in 2 and 0 in 1, h1 1 in 1 and 2 in 2.
TOY = [
    HansPair("ex0", "p", "h", OTHER, "h2", "s9", "temp7"),
    HansPair("ex1", "p", "h", ENTAILED, "h2", "s1", "temp2"),
    HansPair("ex2", "p", "h", ENTAILED, "h2", "s1", "temp7"),
    HansPair("ex3", "p", "h", OTHER, "h1", "s5", "temp1"),
    HansPair("ex4", "p", "h", OTHER, "h1", "s5", "temp1"),
    HansPair("ex5", "p", "h", ENTAILED, "h1", "s5", "temp1"),
]
GUESSES = {"ex0": ENTAILED, "ex1": "neutral", "ex2": ENTAILED, "ex3": "contradiction", "ex4": OTHER, "ex5": ENTAILED}


def random_guesses(pairs: Sequence[HansPair], seed: int) -> dict[str, str]:
    """A label of three for every pair."""
    rng = random.Random(seed)
    return {pair.pair_id: rng.choice(["entailment", "neutral", "contradiction"]) for pair in pairs}


def as_the_authors_print(pairs: Sequence[HansPair], predictions: Mapping[str, str]) -> str:
    """The four blocks of the authors' scorer, counted anew: [right, all] for each line, in order of appearance."""
    blocks: list[dict[str, list[int]]] = [defaultdict(lambda: [0, 0]) for _ in range(4)]
    for pair in pairs:
        right = (predictions[pair.pair_id] == "entailment") == (pair.label == "entailment")
        for block, key in ((pair.label != "entailment", pair.heuristic), (2, pair.subcase), (3, pair.template)):
            blocks[block][key][0] += right
            blocks[block][key][1] += 1
    order = list(dict.fromkeys(pair.heuristic for pair in pairs))
    blocks[:2] = [{name: block[name] for name in order} for block in blocks[:2]]
    titles = ["Heuristic entailed results:", "Heuristic non-entailed results:", "Subcase results:", "Template results:"]
    texts = [
        [title, *(f"{k}: {x * 1.0 / n}" for k, (x, n) in block.items())]
        for title, block in zip(titles, blocks, strict=True)
    ]
    return "\n\n".join("\n".join(text) for text in texts) + "\n"


def test_a_table_counted_by_hand() -> None:
    """Six pairs, every figure worked out on paper: 4 of 6 right, keys in order of first appearance, labels folded."""
    table = score(TOY, GUESSES)
    assert table.accuracy == 4 / 6
    assert list(table.cells.items()) == [
        (("h2", OTHER), 0.0), (("h2", ENTAILED), 0.5), (("h1", OTHER), 1.0), (("h1", ENTAILED), 1.0)
    ]  # fmt: skip
    assert list(table.subcases.items()) == [("s9", 0.0), ("s1", 0.5), ("s5", 1.0)]
    assert list(table.templates.items()) == [("temp7", 0.5), ("temp2", 0.0), ("temp1", 1.0)]
    assert table.count == 6
    assert list(table.cell_counts.values()) == [1, 2, 2, 1]
    assert list(table.subcase_counts.values()) == [1, 2, 3]
    assert list(table.template_counts.values()) == [2, 1, 3]


def test_the_official_text_by_hand() -> None:
    """Four blocks parted by empty lines, floats as Python writes them, names as first met, a last line break."""
    assert official_text(score(TOY, GUESSES)) == (
        "Heuristic entailed results:\nh2: 0.5\nh1: 1.0\n\n"
        "Heuristic non-entailed results:\nh2: 0.0\nh1: 1.0\n\n"
        "Subcase results:\ns9: 0.0\ns1: 0.5\ns5: 1.0\n\n"
        "Template results:\ntemp7: 0.5\ntemp2: 0.0\ntemp1: 1.0\n"
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_the_official_text_of_random_guesses_is_that_of_a_second_count(seed: int) -> None:
    """Two counts made in different ways print the same unrounded floats, and one changed guess changes the text."""
    pairs = generate(7, seed)
    guesses = random_guesses(pairs, seed)
    text = as_the_authors_print(pairs, guesses)
    assert official_text(score(pairs, guesses)) == text
    turned = guesses | {"ex5": "neutral" if guesses["ex5"] == "entailment" else "entailment"}
    assert official_text(score(pairs, turned)) != text


def test_the_perfect_score_one_and_the_constant_their_share() -> None:
    """The gold labels get every pair right; one label throughout is right on exactly its half."""
    pairs = generate(2)
    perfect = score(pairs, {pair.pair_id: pair.label for pair in pairs})
    assert {perfect.accuracy, *perfect.cells.values(), *perfect.subcases.values(), *perfect.templates.values()} == {1.0}
    constant = score(pairs, {pair.pair_id: ENTAILED for pair in pairs})
    assert constant.accuracy == 0.5
    assert all(value == float(label == ENTAILED) for (_, label), value in constant.cells.items())
    assert constant.hans_lo == 0.0


def test_three_way_labels_score_as_their_folded_ones() -> None:
    """Neutral and contradiction both deny entailment; folding first changes nothing."""
    pairs = generate(3)
    guesses = random_guesses(pairs, 4)
    assert score(pairs, guesses) == score(pairs, {name: fold(label) for name, label in guesses.items()})


def test_hans_lo_is_the_non_entailed_lexical_overlap_cell() -> None:
    """With a thousand pairs a subcase it is the mean of the five ln_ subcases; no such pair, no such figure."""
    pairs = generate(4)
    table = score(pairs, random_guesses(pairs, 2))
    lexical = [value for name, value in table.subcases.items() if name.startswith("ln_")]
    assert len(lexical) == 5
    assert table.hans_lo == pytest.approx(sum(lexical) / 5, abs=1e-15)
    with pytest.raises(TaskError, match="no pair of these 6 is lexical_overlap with gold label non-entailment"):
        _ = score(TOY, GUESSES).hans_lo


def test_the_table_as_json_is_plain_and_complete() -> None:
    """Nested dicts that json writes and `from_json` turns back; the shape is what the results store holds."""
    table = score(TOY, GUESSES)
    data = table.to_json()
    assert data == {
        "accuracy": 4 / 6,
        "heuristics": {"h2": {ENTAILED: 0.5, OTHER: 0.0}, "h1": {ENTAILED: 1.0, OTHER: 1.0}},
        "subcases": {"s9": 0.0, "s1": 0.5, "s5": 1.0},
        "templates": {"temp7": 0.5, "temp2": 0.0, "temp1": 1.0},
        "counts": {
            "pairs": 6,
            "heuristics": {"h2": {ENTAILED: 2, OTHER: 1}, "h1": {ENTAILED: 1, OTHER: 2}},
            "subcases": {"s9": 1, "s1": 2, "s5": 3},
            "templates": {"temp7": 2, "temp2": 1, "temp1": 3},
        },
    }
    assert HansTable.from_json(json.loads(json.dumps(data))) == table
    assert HansTable.from_json(data | {"accuracy": 0.5}) != table  # negative control


def test_missing_and_unknown_ids_are_refused_together() -> None:
    """A prediction file made on other pairs must not score by the ids that happen to match."""
    guesses = {name: label for name, label in GUESSES.items() if name not in ("ex2", "ex4")} | {"ex77": ENTAILED}
    with pytest.raises(TaskError) as error:
        score(TOY, guesses)
    assert str(error.value) == (
        "HANS cannot be scored: 2 of 6 pairs have no prediction, the first is 'ex2'; 1 of 5 predictions are for ids "
        "not among the pairs, the first is 'ex77'. Were these predictions made on these pairs?"
    )


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "there are no pairs to score; 6 of 6 predictions are for ids not among the pairs"),
        ([*TOY, TOY[3]], "1 pair ids occur more than once, the first is 'ex3'"),
        ([dataclasses.replace(TOY[0], label="neutral"), *TOY[1:]], "1 pairs have a gold label .* 'ex0' with 'neutral'"),
    ],
)
def test_pairs_that_make_no_set_are_refused(pairs: Sequence[HansPair], message: str) -> None:
    """No pairs, a pair twice, a gold label of three: each would give a number that means nothing."""
    with pytest.raises(TaskError, match=message):
        score(pairs, GUESSES)


def test_the_official_text_needs_both_labels_of_a_heuristic() -> None:
    """The authors' scorer divides by zero there; the table itself stands."""
    table = score(TOY[:5], {name: label for name, label in GUESSES.items() if name != "ex5"})
    assert table.cells["h1", OTHER] == 1.0
    with pytest.raises(TaskError, match="no pair of these 5 is h1 with gold label entailment"):
        official_text(table)


def test_gold_by_position_is_the_gold_of_a_generated_set() -> None:
    """Ids, heuristics, subcases and labels follow from the position alone, whatever the sentences."""
    for count in (1, 3):
        blank = [dataclasses.replace(pair, premise="", hypothesis="", template="") for pair in generate(count)]
        assert gold_by_position(count) == blank
    assert gold_by_position(2) != gold_by_position(1) * 2
    for wrong in (0, -1, 1.0, True):
        with pytest.raises(TaskError, match="count_per_subcase must be an integer of at least 1"):
            gold_by_position(wrong)  # type: ignore[arg-type]


def test_pairs_without_a_template_have_no_line_for_it() -> None:
    """The gold by position knows no templates: the block stays empty and everything else is scored."""
    pairs = gold_by_position(1)
    table = score(pairs, {pair.pair_id: ENTAILED for pair in pairs})
    assert (table.templates, table.template_counts) == ({}, {})
    assert (table.count, table.accuracy, len(table.subcases)) == (30, 0.5, 30)
    assert official_text(table).endswith("ce_adverb: 1.0\n\nTemplate results:\n")


# ---- prediction files, out and in ----


def counted(path: Path, pairs: Sequence[HansPair]) -> tuple[Counter, Counter]:
    """Return (right, all) by heuristic and gold label and by subcase: the file by csv, the count by Counter, no more."""
    gold = {pair.pair_id: pair for pair in pairs}
    right: Counter = Counter()
    every: Counter = Counter()
    with path.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            pair = gold[row["pairID"]]
            hit = (row["gold_label"] == "entailment") == (pair.label == "entailment")
            for key in ("all", (pair.heuristic, pair.label), pair.subcase):
                every[key] += 1
                right[key] += hit
    return right, every


@pytest.mark.parametrize("seed", range(4))
def test_scores_of_a_written_file_are_a_second_program_s_to_the_last_digit(tmp_path: Path, seed: int) -> None:
    """Four synthetic files of three-way labels, written and read by us, and by csv and Counter on the file itself."""
    pairs = generate(20, seed)
    guesses, path = random_guesses(pairs, seed), tmp_path / "preds.txt"
    write_predictions(path, list(guesses), list(guesses.values()))
    assert read_predictions(path) == guesses
    table, (right, every) = score(pairs, read_predictions(path)), counted(path, pairs)
    assert table.accuracy == right["all"] / every["all"]
    assert table.cells == {key: right[key] / every[key] for key in table.cells}
    assert table.subcases == {key: right[key] / every[key] for key in table.subcases}
    assert len(every) == 1 + len(table.cells) + len(table.subcases) == 1 + 6 + 30
    turned_label = f"ex7,{OTHER}\n"  # the control: one label more that is not entailment
    path.write_text(path.read_text().replace(f"ex7,{guesses['ex7']}\n", turned_label))
    turned = score(pairs, read_predictions(path))
    assert (turned == table) is (guesses["ex7"] != "entailment")


def test_a_prediction_file_is_written_as_published(tmp_path: Path) -> None:
    """The bytes of the published format: a header, id and label parted by a comma, a line break after each."""
    path = tmp_path / "new" / "preds.txt"
    write_predictions(path, ["ex1", "ex0"], ["neutral", "entailment"])
    assert path.read_bytes() == b"pairID,gold_label\nex1,neutral\nex0,entailment\n"
    assert [entry.name for entry in path.parent.iterdir()] == ["preds.txt"]


@needs_data
def test_a_published_file_comes_back_byte_for_byte(tmp_path: Path) -> None:
    """Read and written again, the authors' own file is what it was."""
    published = DATA / "published_predictions" / "bert_preds.txt.gz"
    predicted = read_predictions(published)
    write_predictions(tmp_path / "out.txt", list(predicted), list(predicted.values()))
    assert (tmp_path / "out.txt").read_bytes().rstrip(b"\n") == gzip.decompress(published.read_bytes()).rstrip(b"\n")


@pytest.mark.parametrize(
    ("ids", "labels", "message"),
    [
        (["ex0", "ex1"], ["entailment"], "2 ids but 1 labels"),
        (["ex0", "ex0"], ["entailment"] * 2, "1 ids occur more than once, the first is 'ex0'"),
        (["ex0"], ["not entailment"], "contain a comma or white space, the first is 'not entailment'"),
        (["ex,0"], ["entailment"], "the first is 'ex,0'"),
        (["ex0"], [""], "1 ids or labels are empty"),
    ],
)
def test_predictions_that_could_not_be_read_back_are_not_written(
    tmp_path: Path, ids: list[str], labels: list[str], message: str
) -> None:
    with pytest.raises(TaskError, match=message):
        write_predictions(tmp_path / "preds.txt", ids, labels)
    assert list(tmp_path.iterdir()) == []


def test_a_prediction_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TaskError, match=r"preds\.txt cannot be written: ") as caught:
        write_predictions(tmp_path / "file" / "preds.txt", ["ex0"], ["entailment"])
    assert "\n" not in str(caught.value)


@needs_data
def test_gold_by_position_is_the_published_gold() -> None:
    """The staged table lists heuristic, subcase and gold label of every published id."""
    with gzip.open(DATA / "published_gold_by_pairID.tsv.gz", "rt", encoding="utf-8", newline="") as lines:
        rows = [tuple(row.values()) for row in csv.DictReader(lines, delimiter="\t")]
    assert len(rows) == 30_000
    assert [(pair.pair_id, pair.heuristic, pair.subcase, pair.label) for pair in gold_by_position()] == rows


@needs_data
@pytest.mark.parametrize("name", quick_on(("bert_preds",), PUBLISHED))
def test_published_predictions_score_as_published(name: str) -> None:
    """Real predictions end to end: the known table to four places, and ten lines on the raw file exactly."""
    path = DATA / "published_predictions" / f"{name}.txt.gz"
    table = score(gold_by_position(), read_predictions(path))
    assert [table.cells[cell] for cell in CELLS] == PUBLISHED[name]

    with gzip.open(DATA / "published_gold_by_pairID.tsv.gz", "rt") as lines:
        gold = {k: (heuristic, case, label) for k, heuristic, case, label in (line.split() for line in list(lines)[1:])}
    hits: list[bool] = []
    cells: dict[tuple[str, str], list[bool]] = defaultdict(list)
    cases: dict[str, list[bool]] = defaultdict(list)
    with gzip.open(path, "rt") as lines:
        for line in list(lines)[1:]:
            key, guess = line.strip().split(",")
            heuristic, case, label = gold.pop(key)
            hit = (guess if guess == ENTAILED else OTHER) == label
            for where in (hits, cells[heuristic, label], cases[case]):
                where.append(hit)
    assert not gold
    assert table.accuracy == sum(hits) / 30_000
    assert table.cells == {key: sum(cell) / 5_000 for key, cell in cells.items()}
    assert table.subcases == {key: sum(case_hits) / 1_000 for key, case_hits in cases.items()}
    assert set(table.subcase_counts.values()) == {1_000}
    assert table.hans_lo == PUBLISHED[name][3]


@needs_data
@pytest.mark.slow
def test_the_regenerated_set_prints_as_the_authors_scorer_would() -> None:
    """All four blocks of real predictions on 30,000 rows with sixty templates, against the second count."""
    pairs = read_pairs(DATA / "validation.regenerated.jsonl.gz")
    predictions = read_predictions(DATA / "published_predictions" / "bert_preds.txt.gz")
    text = official_text(score(pairs, predictions))
    assert text == as_the_authors_print(pairs, predictions)
    assert len(text.splitlines()) == 4 + 3 + 3 + 3 + 30 + 60


@needs_data
def test_published_runs_add_up() -> None:
    """A published run's subcase accuracies fix how many pairs it got right; its cells and overall figure must follow.

    Every figure of the file is rounded to nine places; three of its hundred runs show the sums.
    """
    with (DATA / "berts_of_a_feather_accuracies_by_run.csv").open(encoding="utf-8-sig", newline="") as lines:
        runs = [run for run in csv.DictReader(lines) if run["Run"].startswith("Run ")]
    assert len(runs) == 100
    gold = gold_by_position()
    named = ["Lexical (entailed)", "Subseq (entailed)", "Constituent (entailed)",
             "Lexical (nonent)", "Subseq (nonent)", "Constituent (nonent)"]  # fmt: skip
    for run in runs[::40]:
        guesses = {}
        for k, pair in enumerate(gold):
            right = k % 1000 < round(float(run[pair.subcase]) * 1000)
            guesses[pair.pair_id] = pair.label if right else OTHER if pair.label == ENTAILED else ENTAILED
        table = score(gold, guesses)
        assert [table.cells[cell] for cell in CELLS] == pytest.approx([float(run[name]) for name in named], abs=1e-8)
        assert table.accuracy == pytest.approx(float(run["Overall accuracy"]), abs=1e-8)
        assert [table.cells[cell] for cell in CELLS] != [float(runs[1][name]) for name in named]
