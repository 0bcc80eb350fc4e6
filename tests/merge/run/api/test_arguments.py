"""Values that are no arguments: each is refused in one line by every function of the API, before anything is read."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import evals
import merge
from evals.run.arguments import ScoreOptions
from evals.run.results import Scores
from merge.errors import UsageError
from merge.recipe.recipe import make_recipe
from merge.run.api.arguments import LEAST, _alternatives, _kind, check_arguments
from merge.run.results import MergedModel
from merge.text.memory import rows_file, text_file

# What a type takes, and what it does not: for each, values that a user might give by mistake.
TAKEN: dict[str, list[Any]] = {
    "None": [None],
    "bool": [True, np.bool_(0)],
    "int": [3, np.int64(3)],
    "float": [0.5, 2, np.float32(0.5)],
    "str": ["a"],
    "os.PathLike[str]": [Path("a")],
    "Any": [object()],
    "Mapping[str, Any]": [{"by": "weights"}],
    "Sequence[str]": [["a"], ("a", "b"), []],
    "Sequence[int]": [[1], range(2), np.arange(2)],
    "Sequence[float]": [[0.5, 1], np.ones(2)],
    "Sequence[Any]": [[1, "a"]],
    "Sequence[Sequence[int]]": [[[0, 1], [1, 0]], np.ones((2, 2), int)],
    "tuple[int, int]": [(1, 2), [1, 2]],
    "Callable[[Any], float]": [len],
    "Callable[[str], None]": [print],
    "Units": [{0: [1, 2]}, "0:1,2", {np.int64(0): range(2)}, {}],
    "WrittenModel": [object.__new__(MergedModel)],
    "Scores": [object.__new__(Scores)],
    "Recipe": [make_recipe({"models": ["a", "b"], "output": "c"})],
}
REFUSED: dict[str, list[Any]] = {
    "None": [0],
    "bool": [1, "yes", None],
    "int": [True, 1.5, "3", [3]],
    "float": [True, "0.5", [0.5]],
    "str": [b"a", 1, True, ["a"]],
    "os.PathLike[str]": [b"a", 3],
    "Mapping[str, Any]": [[("by", "weights")], True],
    "Sequence[str]": ["ab", [1], {"a": 1}, True, b"ab"],
    "Sequence[int]": ["12", [1.5], [True], 3],
    "Sequence[float]": ["12", ["0.5"], 0.5, {0.5}],
    "Sequence[Any]": ["ab", 3, {"a": 1}],
    "Sequence[Sequence[int]]": [[0, 1], ["01"], [[0.5]]],
    "tuple[int, int]": [(1,), (1, 2, 3), (1, "2"), "12", 3],
    "Callable[[Any], float]": ["len", 3],
    "Callable[[str], None]": ["print"],
    "Units": [3, [0], {"0": [1]}, {0: 1}, {0: ["1"]}, {0: "1"}],
    "WrittenModel": [3, {}, object()],
    "Scores": [3, [], object()],
    "Recipe": [3, {}, object()],
}


def functions() -> dict[str, Callable[..., Any]]:
    """Return the public functions of both packages."""
    both = {
        f"{package.__name__}.{name}": getattr(package, name) for package in (merge, evals) for name in package.__all__
    }
    return {name: each for name, each in both.items() if callable(each) and not isinstance(each, type)}


def test_every_type_takes_what_it_is_and_nothing_else() -> None:
    for annotation, values in TAKEN.items():
        kind = _kind(annotation)
        assert kind is not None, annotation
        assert all(kind.holds(value) for value in values), annotation
        assert not any(kind.holds(value) for value in REFUSED.get(annotation, ())), annotation


@pytest.mark.parametrize("name", functions())
def test_no_function_takes_a_value_of_another_type(name: str) -> None:
    """Of every argument whose type is none of ours. That it takes right ones is what every other test of the API shows."""
    function = functions()[name]
    parameters = inspect.signature(function).parameters.values()
    required = {
        each.name: object() for each in parameters if each.default is each.empty and each.kind != each.VAR_KEYWORD
    }
    tried = 0
    for parameter in parameters:
        kinds = _alternatives(str(parameter.annotation))
        if any(_kind(kind) is None for kind in kinds) or "Any" in kinds:
            continue
        listed = [REFUSED.get(kind, REFUSED["Mapping[str, Any]"]) for kind in kinds]
        wrong = [v for values in listed for v in values if not any(holds(other, v) for other in kinds)]
        for value in wrong:
            with pytest.raises(UsageError, match=f"^{parameter.name}: expected .*, found ") as caught:
                check_arguments(function, {parameter.name: value})
            assert "\n" not in str(caught.value)
            tried += 1
        if wrong and all(_of_ours(function, other) for other in required if other != parameter.name):
            with pytest.raises(UsageError, match=f"^{parameter.name}: expected "):
                function(**{**required, parameter.name: wrong[0]})
    assert tried > 0 or name == "evals.hans"  # which hands all but models and rows on to `score`


def holds(kind: str, value: Any) -> bool:
    found = _kind(kind)
    return found is not None and found.holds(value)


def _of_ours(function: Callable[..., Any], name: str) -> bool:
    """Return whether an argument's type is left to what reads it."""
    return any(_kind(kind) is None for kind in _alternatives(function.__annotations__[name]))


def test_every_type_that_a_function_states_is_checked_or_one_of_ours() -> None:
    """A type that is spelled in a new way would be checked no longer."""
    ours = ("ModelLike", "TextLike", "RowsLike", "Mapping[str, RowsLike")
    for name, function in functions().items():
        for parameter in inspect.signature(function).parameters.values():
            for kind in _alternatives(str(parameter.annotation)):
                assert kind in TAKEN or any(each in kind for each in ours), (name, parameter.name, kind)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"models": {"a": 0.3, "b": 0.7}},
            r"expected a list of models, found a dict\. Example: .*weights=\[\.3, \.7\]",
        ),
        ({"models": True}, "model 1 is a builtins.bool"),
        ({"models": []}, "no models given"),
        ({"models": None}, "model 1 is a builtins.NoneType|no models given"),
        ({"models": "a"}, "expected a list of models, found 'a'"),
        ({"models": ["a", "b"], "align": True}, "align: expected text or a mapping, found True"),
        ({"models": ["a", "b"], "weights": "0.5"}, "weights: expected a list of numbers or None, found '0.5'"),
    ],
)
def test_what_is_no_list_of_models_is_one_line(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        merge.merge(**values)


@pytest.mark.parametrize("name", LEAST)
def test_a_number_below_the_least_of_its_name_is_one_line(name: str) -> None:
    takes = [each for each in (*functions().values(), ScoreOptions) if name in each.__annotations__]
    assert takes, f"no function has {name}"
    least = LEAST[name]
    for function in takes:
        check_arguments(function, {name: least})
        with pytest.raises(UsageError, match=f"^{name} must be at least {least}, found {least - 1}\\.$"):
            check_arguments(function, {name: least - 1})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_are_finite(value: float) -> None:
    with pytest.raises(UsageError, match=f"ridge must be a finite number, found {value}"):
        merge.edit("a", "0", ridge=value)


def test_a_dtype_that_models_do_not_compute_in_is_one_line() -> None:
    with pytest.raises(UsageError, match=r"unknown dtype 'float33'\. Did you mean 'float32'\?"):
        evals.score(["a"], "mnli", dtype="float33")


def test_options_that_are_handed_on_are_checked_too() -> None:
    for call in (evals.line, evals.plane, evals.curve, evals.hans):
        arguments = {"evals.hans": {"models": ["a"]}}.get(f"evals.{call.__name__}")
        arguments = arguments or {"task": "mnli", **({"models": []} if call is evals.plane else {"a": "a", "b": "b"})}
        arguments |= {"train": []} if call is evals.curve else {}
        with pytest.raises(UsageError, match="limit: expected a whole number or None, found 'all'"):
            call(**arguments, limit="all")


@pytest.mark.parametrize("call", [evals.line, evals.stitch, evals.features])
def test_a_device_that_torch_lacks_is_one_line(call: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match="--device nonsense cannot be used"):
        call("a", "b", task="mnli", device="nonsense")


class Frame:
    """A table by columns, as pandas has it."""

    columns = ("text",)

    def to_dict(self, _orient: str) -> list[dict[str, str]]:
        return [{"text": "a"}]


@pytest.mark.parametrize("read", [text_file, rows_file])
def test_rows_are_a_list(read: Callable[[Any, Path], str], tmp_path: Path) -> None:
    for given, words in (
        (Frame(), r"expected a list, found a Frame\. Give its rows"),
        ({"text": ["a"]}, "expected a file or a list of (text|rows), found a value of type dict"),
        (3, "expected a file or a list of (text|rows), found a value of type int"),
        (b"text", "found a value of type bytes"),
    ):
        with pytest.raises(UsageError, match=words):
            read(given, tmp_path)
    assert Path(read(Frame().to_dict("records"), tmp_path)).read_text(encoding="utf-8") == '{"text": "a"}\n'
    assert Path(read(({"text": word} for word in "ab"), tmp_path)).read_text(encoding="utf-8").count("\n") == 2
