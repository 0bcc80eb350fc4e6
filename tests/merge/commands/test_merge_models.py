"""merge-models as it is typed: answers on stdout, one line on stderr for what is wrong, and nothing half done."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import drawn_once
import pytest
import torch
import warm
from safetensors.torch import load_file, save_file
from tiny import WORDS, bert_config, save_checkpoint, save_tokenizer, write_text

from merge.commands.failures import on_one_line
from merge.commands.merge_models import main
from merge.publish import alignment_plot

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Answer:
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


Run = Callable[..., Answer]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with checkpoints a, b and c, and a calibration text."""
    folder = tmp_path_factory.mktemp("store")
    for seed, name in enumerate("abc"):
        save_checkpoint(folder / name, seed=seed)
    write_text(folder / "text.txt", 24)
    return folder


@pytest.fixture
def place(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a fresh working folder with the checkpoints in it."""
    for path in store.iterdir():
        (shutil.copytree if path.is_dir() else shutil.copy)(path, tmp_path / path.name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Return a function that runs merge-models in this process."""

    def run_here(*arguments: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["merge-models", *arguments])
        code = 0
        capsys.readouterr()  # what preparing the inputs showed
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    handler, level = signal.getsignal(signal.SIGTERM), logging.getLogger().level
    yield run_here
    signal.signal(signal.SIGTERM, handler)
    logging.getLogger().setLevel(level)


def everything(folder: Path) -> dict[str, str]:
    """Return relative path -> SHA-256 of every file, hidden ones too."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def change_config(folder: str, **changes: object) -> None:
    path = Path(folder) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


# One bad input each: what is done to the folder, what is typed, the exit code, and what the line says.


def _nothing() -> None:
    pass


def _not_a_checkpoint() -> None:
    Path("x").mkdir()
    Path("x/notes.txt").write_text("x", encoding="utf-8")


def _truncated() -> None:
    path = Path("b/model.safetensors")
    path.write_bytes(path.read_bytes()[:-50])


def _corrupted() -> None:
    path = Path("b/model.safetensors")
    path.write_bytes(b"\xff" * 16 + path.read_bytes()[16:])


def _other_architecture() -> None:
    save_checkpoint(Path("x"), bert_config("BertForMaskedLM"))


def _other_size() -> None:
    save_checkpoint(Path("x"), bert_config(hidden_size=32))


def _other_vocabulary() -> None:
    save_tokenizer(Path("b"), WORDS[::-1])


def _other_labels() -> None:
    change_config("b", id2label={"0": "yes", "1": "no", "2": "perhaps"}, label2id={"yes": 0, "no": 1, "perhaps": 2})


def _nan() -> None:
    tensors = load_file("b/model.safetensors")
    tensors["bert.pooler.dense.weight"][1, 2] = float("nan")
    save_file(tensors, "b/model.safetensors", {"format": "pt"})


def _output_exists() -> None:
    shutil.copytree("c", "merged")


def _thesis() -> None:
    Path("merged").mkdir()
    Path("merged/thesis.tex").write_text("x", encoding="utf-8")


def _empty_text() -> None:
    Path("empty.txt").write_text("\n \n", encoding="utf-8")


def _recipe() -> None:
    Path("r.yaml").write_text("models: [a, b]\nmethd: linear\n", encoding="utf-8")


def _full_folder() -> None:
    Path("file").write_text("x", encoding="utf-8")


BAD: dict[str, tuple[Callable[[], None], str, int, str]] = {
    "path missing": (_nothing, "a nowhere", 1, "nowhere: no such folder, and not a Hub id"),
    "a file": (_nothing, "a text.txt", 1, "text.txt is a file; expected a checkpoint folder"),
    "not a checkpoint": (_not_a_checkpoint, "a x", 1, "x is not a checkpoint: it has no config.json"),
    "truncated": (_truncated, "a b", 1, "b/model.safetensors: cannot be read as safetensors"),
    "corrupted": (_corrupted, "a b", 1, "b/model.safetensors: cannot be read as safetensors"),
    "architectures": (_other_architecture, "a x", 1, "architectures differ"),
    "sizes": (_other_size, "a x", 1, "hidden_size is 24 in a, 32 in x"),
    "vocabularies": (_other_vocabulary, "a b", 1, "vocabularies differ"),
    "label sets": (_other_labels, "a b", 1, "a has entailment, neutral, contradiction; b has yes, no, perhaps"),
    "NaN": (_nan, "a b", 1, "b: bert.pooler.dense.weight holds NaN or infinity"),
    "NaN, aligned": (_nan, "a b --align weights --axes ffn", 1, "b: bert.pooler.dense.weight holds NaN or infinity"),
    "output exists": (_output_exists, "a b", 1, "output merged exists. Choose another -o, or --force"),
    "output is no checkpoint": (_thesis, "a b --force", 1, "output merged holds no checkpoint"),
    "output is an input": (_nothing, "a b -o a --force", 1, "output a is, or holds, the input a"),
    "output holds the inputs": (_nothing, "a b -o . --force", 1, "output . is, or holds, the input a"),
    "output under a file": (_full_folder, "a b -o file/out", 1, "is not a folder that can be written to"),
    "unknown method": (_nothing, "a b --method sleep", 2, "unknown method 'sleep'. Did you mean 'slerp'?"),
    "unknown aligner": (_nothing, "a b --align activation", 2, "Did you mean 'activations'?"),
    "unknown option": (_nothing, "a b --methd slerp", 2, "No such option '--methd'. (Did you mean one of: '--method'"),
    "unknown setting": (_nothing, "a b --method slerp --set lan=1", 2, "no setting 'lan'. Did you mean 'lam'?"),
    "unknown axes": (_nothing, "a b --align weights --axes fnn", 2, "Did you mean 'ffn'?"),
    "unknown dtype": (_nothing, "a b --out-dtype float31", 2, "out_dtype: expected 'float32', 'float16', 'bfloat16' or"),
    "not a number": (_nothing, "a b --seed x", 2, "Invalid value for '--seed'"),
    "no whole number": (_nothing, "a b --samples 1k", 2, "'1k' is not a whole number. See merge-models --help."),
    "no value": (_nothing, "a b --method", 2, "Option '--method' requires an argument"),
    "empty text": (_empty_text, "a b --align activations --text empty.txt", 1, "empty.txt"),
    "text missing": (_nothing, "a b --align weights --text none.txt", 1, "none.txt: there is no such file"),
    "text alone": (_nothing, "a b --text text.txt", 2, "text belongs to an alignment"),
    "no network": (_nothing, "a some/model", 1, "cannot download some/model: offline mode is on"),
    "no models": (_nothing, "", 2, "no models given. Example: merge-models a/ b/"),
    "one model": (_nothing, "a", 2, "method linear needs at least two models, found one"),
    "three for slerp": (_nothing, "a b c --method slerp", 2, "slerp merges exactly two models, found 3"),
    "recipe and models": (_recipe, "--recipe r.yaml a", 2, "--recipe sets everything; it cannot be combined with models"),
    "recipe and flags": (_recipe, "--recipe r.yaml --seed 0", 2, "it cannot be combined with seed"),
    "a bad recipe": (_recipe, "--recipe r.yaml", 2, "r.yaml:2:1: methd: unknown key. Did you mean 'method'?"),
    "recipe missing": (_nothing, "--recipe none.yaml", 2, "recipe none.yaml cannot be read"),
    "private alone": (_nothing, "a b --private", 2, "--private has no effect without --push-to-hub"),
    "a bad Hub id": (_nothing, "a b --push-to-hub mine", 1, "'mine' is not a Hub id: write org/name"),
    "revision of a folder": (_nothing, "a b --revision main", 1, "a is a local folder, which has no revision 'main'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_input_is_one_clear_line_and_nothing_is_written(case: str, run: Run, place: Path) -> None:
    prepare, arguments, code, expected = BAD[case]
    prepare()
    before = everything(place)
    answer = run(*arguments.split())
    lines = [line for line in answer.err.splitlines() if " done in " not in line and " stopped at " not in line]
    assert answer.code == code
    assert expected in lines[0]
    assert lines[0].startswith("merge-models: ")
    # Pre-flight lists all faults, one a line; every other refusal is one line.
    assert len(lines) == 1 or case == "sizes"
    assert "Traceback" not in answer.err
    assert answer.out == ""
    assert everything(place) == before


def test_a_merge_writes_a_checkpoint_that_transformers_loads(run: Run, place: Path) -> None:
    """The mean of the two models, the tokenizer, the card and the records; answers on stdout."""
    answer = run("a", "b")
    assert answer.code == 0
    assert "merged a, b by linear: 41 tensors, wrote merged (43,724 bytes), which reloads" in answer.out
    a, b, merged = (load_file(place / name / "model.safetensors") for name in ("a", "b", "merged"))
    assert merged.keys() == a.keys()
    assert all(torch.allclose(merged[name], (a[name] + b[name]) / 2, atol=1e-7) for name in a)
    names = {
        "README.md",
        "config.json",
        "merge.json",
        "model.safetensors",
        "recipe.yaml",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert everything(place / "merged").keys() == names
    assert {path.stat().st_mode & 0o777 for path in (place / "merged").iterdir()} == {0o666 & ~_umask()}
    assert [path.name for path in place.glob(".*")] == []


def _umask() -> int:
    old = os.umask(0)
    os.umask(old)
    return old


def test_swapped_labels_are_merged_by_name_and_that_is_said(run: Run, place: Path) -> None:
    """Row 0 of a is entailment, of b contradiction: what is averaged are the rows of one name."""
    change_config("b", id2label={"0": "contradiction", "1": "Entailment", "2": "NEUTRAL"})
    answer = run("a", "b")
    assert answer.code == 0
    assert "note: labels of b reordered by name to entailment, neutral, contradiction" in answer.err
    a, b, merged = (load_file(place / name / "model.safetensors") for name in ("a", "b", "merged"))
    for name in ("classifier.weight", "classifier.bias"):
        assert torch.allclose(merged[name], (a[name] + b[name][[1, 2, 0]]) / 2, atol=1e-7)
        assert not torch.allclose(merged[name], (a[name] + b[name]) / 2, atol=1e-3)
    rest = "bert.pooler.dense.weight"
    assert torch.allclose(merged[rest], (a[rest] + b[rest]) / 2, atol=1e-7)
    config = json.loads((place / "merged" / "config.json").read_text(encoding="utf-8"))
    assert config["id2label"] == {"0": "entailment", "1": "neutral", "2": "contradiction"}


def test_placeholder_labels_are_said(run: Run) -> None:
    for name in "ab":
        change_config(name, id2label={str(i): f"LABEL_{i}" for i in range(3)})
    assert "note: labels carry placeholder names (LABEL_0, LABEL_1, LABEL_2)" in run("a", "b").err


def test_json_alone_goes_to_stdout(run: Run) -> None:
    answer = run("a", "b", "c", "--weights", "2,1,1", "--json")
    facts = json.loads(answer.out)
    assert facts["output"] == "merged"
    assert [model["source"] for model in facts["models"]] == ["a", "b", "c"]
    assert facts["recipe"]["settings"] == {"weights": [2, 1, 1]}


def test_a_dry_run_writes_nothing(run: Run, place: Path) -> None:
    """Not even where an output exists, which it reports as the run would; with --json stdout is still JSON alone."""
    _output_exists()
    before = everything(place)
    asked = ["a", "b", "--align", "weights", "--text", "text.txt", "--dry-run", "--push-to-hub", "me/merged", "--json"]
    assert "output merged exists" in run(*asked).err
    answer = run(*asked, "--force")
    assert answer.code == 0
    assert json.loads(answer.out)["output"] is None
    assert "would push merged to me/merged once it is written" in answer.err
    assert everything(place) == before


def test_quiet_silences_notes_and_progress(run: Run) -> None:
    """And nothing else: the answer stays."""
    change_config("b", id2label={"0": "contradiction", "1": "entailment", "2": "neutral"})
    loud, quiet = run("a", "b", "-o", "x"), run("a", "b", "-o", "y", "-q")
    assert "note:" in loud.err
    assert "merging tensors" in loud.err
    assert quiet.err == ""
    assert "wrote y" in quiet.out


ALIGNED = (
    "a",
    "b",
    "--align",
    "activations",
    "--text",
    "text.txt",
    "--axes",
    "ffn,heads",
    "--method",
    "slerp",
    "--set",
    "lam=1e-1",
)


@pytest.mark.slow
def test_the_printed_recipe_runs_to_the_same_weights(run: Run, place: Path) -> None:
    """--print-recipe writes nothing; its text, and the recipe.yaml of a merge, are that merge."""
    flags = run(*ALIGNED, "-o", "x")
    assert flags.code == 0
    printed = run(*ALIGNED, "-o", "x", "--print-recipe")
    Path("r.yaml").write_text(printed.out, encoding="utf-8")
    assert (place / "x" / "recipe.yaml").read_text(encoding="utf-8").endswith(printed.out)
    assert run("--recipe", "r.yaml", "-o", "y").code == 0
    assert run("--recipe", "x/recipe.yaml", "-o", "z").code == 0
    x, y, z = (everything(place / name) for name in "xyz")
    for name in ("model.safetensors", "transform.safetensors", "config.json"):
        assert x[name] == y[name] == z[name]


@pytest.mark.slow
def test_the_same_command_twice_gives_the_same_bytes(run: Run, place: Path) -> None:
    """Every file, the manifest and the card among them: no times, no host, no order of a set."""
    assert run(*ALIGNED).code == 0
    first = everything(place / "merged")
    assert run(*ALIGNED, "--force").code == 0
    assert everything(place / "merged") == first
    assert len(first) == 9
    assert run(*ALIGNED[:-1], "lam=0.2", "--force").code == 0
    assert everything(place / "merged")["model.safetensors"] != first["model.safetensors"]  # negative control


def test_dtypes_are_written_as_asked_and_mixed_ones_need_the_word(run: Run, place: Path) -> None:
    tensors = {name: tensor.bfloat16() for name, tensor in load_file("b/model.safetensors").items()}
    save_file(tensors, "b/model.safetensors", {"format": "pt"})
    assert "dtypes differ" in run("a", "b").err
    assert run("a", "b", "--out-dtype", "float16").code == 0
    merged = load_file(place / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in merged.values()} == {torch.float16}
    assert json.loads((place / "merged" / "config.json").read_text(encoding="utf-8"))["dtype"] == "float16"


# What follows runs as a process of its own.


def child(*arguments: str, code: str = "from merge.commands.merge_models import main; main()") -> list[str]:
    return [sys.executable, "-c", code, *arguments]


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "100"}


def test_a_model_folder_with_the_name_of_a_command_is_given_as_a_path(run: Run, place: Path) -> None:
    """`push` is a command, `./push` and `push/` are a folder; as a later argument the bare name is a folder too."""
    (place / "a").rename(place / "push")
    for models in (("./push", "b"), ("push/", "b"), ("b", "push")):
        assert run(*models, "--dry-run").code == 0, models
    assert run("push", "b", "--dry-run").code != 0


def test_help_needs_no_heavy_import_and_shows_examples() -> None:
    """Neither does a recipe: torch and transformers take seconds, and a typing error is answered before them."""
    heavy = (
        "{'torch', 'transformers', 'pydantic', 'numpy', 'scipy', 'sklearn', 'datasets', 'evaluate', 'matplotlib', 'yaml', "
        "'merge.methods.linear', 'merge.methods.ties'}"
    )
    code = (
        "import sys\nfrom merge.commands.merge_models import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        f"found = {heavy} & set(sys.modules)\nprint('imported:', sorted(found))"
    )
    for arguments in (["--help"], ["push", "--help"], ["card", "-h"]):
        shown = subprocess.run(
            child(*arguments, code=code), capture_output=True, text=True, env=ENVIRONMENT, check=True
        )
        assert "imported: []" in shown.stdout
        assert "Usage: merge-models" in shown.stdout
        assert "Example" in shown.stdout
        assert shown.stderr == ""
    recipe = subprocess.run(
        child("a", "b", "--print-recipe", code=code), capture_output=True, text=True, env=ENVIRONMENT, check=True
    )
    assert "imported: ['merge.methods.linear', 'pydantic', 'yaml']" in recipe.stdout  # no method but the recipe's


def _cpu_seconds(command: list[str]) -> float:
    """Return the CPU time of a child: what others do to the machine meanwhile does not count."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, capture_output=True, env=ENVIRONMENT, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("arguments", [["--help"], ["a", "b", "--print-recipe"]])
def test_help_and_recipes_are_answered_at_once(arguments: list[str]) -> None:
    """Under 0.3 s of CPU beyond what the bare interpreter takes, in the best of a few runs."""
    bare = _cpu_seconds([sys.executable, "-c", "pass"])
    command = child(*arguments, code="from merge.entry import merge_models; merge_models()")
    assert any(_cpu_seconds(command) - bare < 0.3 for _ in range(5))


# A process that is started in the background by a shell (`make test &`) ignores SIGINT, and so would its children.
SLOW = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from merge.checkpoints.weights.write import WeightWriter
whole = WeightWriter.write

def slowly(*arguments):
    os.write(2, b"writing\\n")  # in one piece, whichever thread
    time.sleep(0.5)
    whole(*arguments)

WeightWriter.write = slowly
from merge.commands.merge_models import main
main()
"""


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_in_the_middle_leaves_nothing(which: signal.Signals, place: Path) -> None:
    """Exit 130, the old output as it was, no temporary folder; killing politely is the same."""
    _output_exists()
    before = everything(place)
    process = subprocess.Popen(
        child("a", "b", "--force", "-q", code=SLOW),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        cwd=place,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "writing\n"
    assert len(list(place.glob(".merged.*"))) == 1  # negative control: it was under way
    process.send_signal(which)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert err.strip().splitlines()[-1] == "merge-models: interrupted; no incomplete output is left"
    assert "Traceback" not in err
    assert everything(place) == before
    assert list(place.glob(".merged.*")) == []


def test_a_killed_run_is_cleaned_up_by_the_next(place: Path, run: Run) -> None:
    """Nothing can be done on SIGKILL itself; the output is not there, and what was left goes when it is made."""
    process = subprocess.Popen(
        child("a", "b", "-q", code=SLOW), stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=place
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "writing\n"
    process.kill()
    process.communicate()
    assert not (place / "merged").exists()
    assert len(list(place.glob(".merged.*"))) == 1
    assert run("a", "b").code == 0
    assert list(place.glob(".merged.*")) == []


def test_progress_on_a_terminal_leaves_the_cursor_on_a_fresh_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the loop ends or is left early, what comes next, an error perhaps, has a line to itself."""
    from merge.commands.phases import Phases

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    counted = Phases(True, False).counted
    assert list(counted([1, 2], "going")) == [1, 2]
    for _ in counted([1, 2, 3], "going"):
        break
    shown = capsys.readouterr().err
    assert shown.count("\n") == 2
    assert "going: 2 done in" in shown
    assert "going: stopped at 1 of 3" in shown
    assert shown.endswith("\n")


def test_a_fault_of_the_machine_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file that vanishes and a full memory are nobody's bug; the traceback of a bug of ours is kept in a file."""
    import merge.run.run

    monkeypatch.setenv("MERGE_MODELS_CACHE", str(tmp_path / "cache"))
    for fault, said in (
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"), "not enough memory"),
        (PermissionError(13, "Permission denied", "x"), "PermissionError"),
        (MemoryError("no room"), "no room"),
    ):
        monkeypatch.setattr(merge.run.run, "run", _raiser(fault))
        answer = run("a", "b")
        assert answer.code == 1
        assert said in answer.err
        assert len(answer.err.splitlines()) == 1
    monkeypatch.setattr(merge.run.run, "run", _raiser(ZeroDivisionError()))
    answer = run("a", "b")
    assert answer.code == 70
    assert "ZeroDivisionError: this is a fault of merge-models: report it with " in answer.err
    assert len(answer.err.splitlines()) == 1
    assert "Traceback" in Path(answer.err.split()[-1]).read_text(encoding="utf-8")
    answer = run("a", "b", "-v")
    assert answer.code == 70
    assert "Traceback" in answer.err
    assert len(list((tmp_path / "cache" / "faults").iterdir())) == 1


@pytest.mark.parametrize(
    ("fault", "code", "word"), [(EOFError(), 70, "EOFError: this is"), (KeyboardInterrupt(), 130, "interr")]
)
def test_a_file_that_ends_too_soon_is_no_interrupt(
    fault: BaseException, code: int, word: str, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """click takes both for the end of the user's patience."""
    import merge.run.run

    monkeypatch.setenv("MERGE_MODELS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(merge.run.run, "run", _raiser(fault))
    answer = run("a", "b")
    assert answer.code == code
    assert word in answer.err
    assert len(answer.err.split()) > 3
    assert len(answer.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("one", "one"),
        ("one\ntwo;\n\n  three.", "one; two; three."),
        ("one.\ntwo.\nthree...\nfour.", "one; two; three...; four."),
        ("\x1b[31mred\ud800", "\\x1b[31mred\\ud800"),
        ("x" * 3000, f"{'x' * 2000}... (3,000 characters; -v shows them all)"),
    ],
)
def test_an_error_is_one_line_that_every_terminal_can_show(message: str, line: str) -> None:
    assert on_one_line(message) == line
    assert len(on_one_line(message, verbose=True).splitlines()) == len([row for row in message.split("\n") if row])


def _raiser(fault: BaseException) -> Callable[..., None]:
    def raise_it(*_: object) -> None:
        raise fault

    return raise_it


@pytest.mark.slow
def test_another_process_with_another_hash_seed_writes_the_same_bytes(
    place: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python orders a set of names differently in every process; no figure may follow it."""
    words = ["a", "b", "--align", "activations", "--text", "text.txt", "-o", "out", "-q", "--force"]
    monkeypatch.setattr(alignment_plot, "save_alignment_plot", drawn_once.draw)  # each picture is its own here
    assert run(*words).code == 0
    written = everything(place / "out")
    code = "from merge.commands.merge_models import main; main()"
    done = warm.run([sys.executable, "-c", code, *words], cwd=place, reseeded=True)
    assert done.returncode == 0, done.stderr
    assert everything(place / "out") == written
    assert "merge.json" in written
