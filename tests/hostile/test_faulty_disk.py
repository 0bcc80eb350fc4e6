"""Fault injection: whichever operation on a file fails, a command ends with one line, leaves nothing, and works again.

Studies, stitches and repairs are tried at some of their operations; MERGE_MODELS_FAULTS=all tries every one.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import studies
import world as worlds
from faulty_disk import ERRORS, FaultyDisk, failing
from quick import quick_on
from test_fuzz import Outcome, contents, run_command

from merge.run.verify import verify

SAMPLED = 6  # operations of each command in the quick test
STUDY_SAMPLED = None if os.environ.get("MERGE_MODELS_FAULTS") == "all" else 5  # of each study; None for all


@dataclass(frozen=True)
class Scenario:
    """A command, the folder that it writes, and what is in its place before."""

    words: tuple[str, ...]
    output: str
    older: str | None = None


SCENARIOS = {
    "merge": Scenario(("merge-models", "-q", "a", "b", "-o", "out"), "out"),
    "replaced": Scenario(("merge-models", "-q", "a", "b", "-o", "out", "--force"), "out", "merged"),
    "edit": Scenario(("edit-layers", "stack", "a", "-q", "--layers", "0,0", "-o", "out"), "out"),
    "evaluation": Scenario(("evaluate-models", "score", "-q", "task.yaml", "a", "-o", "out"), "out"),
}


STUDIES = {
    "stitched": Scenario(
        ("stitch-models", "a", "b", "--at", "1:0", "--map", "scale", *studies.TEXT, "-q", "-o", "out"), "out"
    ),
    "applied": Scenario(("edit-layers", "apply", "a", "b", "--plan", "A0, mean(A0, B0)", "-q", "-o", "out"), "out"),
    "repaired": Scenario(
        ("edit-layers", "apply", "a", "b", "--plan", "A0, B0", "--repair", "seam", *studies.TEXT, "-q", "-o", "out"),
        "out",
    ),
    **{
        words[1]: Scenario((*words, "-o", "out"), "out")
        for words in ((*studies.STITCH, *studies.TEXT), (*studies.LESION, *studies.TEXT), studies.CURVE, studies.PLANE)
    },
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the folder that the commands run in, with a cache of its own."""
    folder = worlds.make_world(tmp_path_factory.mktemp("disk"))
    studies.add_studies(folder)
    before, undrawn = Path.cwd(), studies.undrawn()
    os.chdir(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MERGE_MODELS_CACHE", str(folder / "cache"))
        first_run(worlds.PREPARED[0])
        yield folder
    undrawn.undo()
    os.chdir(before)


def first_run(words: Sequence[str]) -> None:
    """Let the cache see a command once; what another left is in its way."""
    shutil.rmtree("out", ignore_errors=True)
    outcome = run_command(words, wait=600)
    assert outcome.code == 0, outcome.err
    shutil.rmtree("out", ignore_errors=True)


def attempt(
    scenario: Scenario, world: Path, fails_at: int, number: int, again: bool = True
) -> tuple[FaultyDisk, Outcome]:
    """Run a command on a disk that fails once, and `again` on one that does not; check what both leave."""
    shutil.rmtree(world / "out", ignore_errors=True)
    if scenario.older:
        shutil.copytree(world / scenario.older, world / "out")
    before = {name: stamp for name, stamp in contents(world).items() if not name.startswith("cache/")}
    with failing(FaultyDisk(world, fails_at, number)) as disk:
        outcome = run_command(scenario.words)
    what = f"n = {fails_at} ({disk.failed}), {errno.errorcode[number]}: exit {outcome.code}: {outcome.err}"
    after = {name: stamp for name, stamp in contents(world).items() if not name.startswith("cache/")}
    assert outcome.code in (0, 1, 2), what
    assert len(outcome.err.splitlines()) == (1 if outcome.code else 0), what
    assert [name for name in after if any(part.startswith(".") for part in Path(name).parts)] == [], what
    inputs = {name: stamp for name, stamp in before.items() if not name.startswith("out/")}
    assert {name: stamp for name, stamp in after.items() if not name.startswith("out/")} == inputs, what
    if scenario.words[0] == "evaluate-models":
        if (world / "out" / "results.json").exists():
            json.loads((world / "out" / "results.json").read_text(encoding="utf-8"))
    elif outcome.code:
        assert after == before, what
    if fails_at and again:
        if scenario.words[0] != "evaluate-models":  # which goes on from what is there
            shutil.rmtree(world / "out", ignore_errors=True)
        second = run_command(scenario.words)
        assert second.code == 0, f"{what}; then: {second.err}"
    if scenario.words[0] != "evaluate-models" and (again or not outcome.code):
        assert verify(world / "out").holds, what
    return disk, outcome


def all_operations(scenario: Scenario, world: Path) -> int:
    """Return how many operations on files a command makes once the cache has seen it."""
    first_run(scenario.words)
    disk, outcome = attempt(scenario, world, 0, errno.EIO)
    assert outcome.code == 0
    assert min(disk.counts[kind] for kind in ("open", "read", "write", "fsync", "rename")) > 0
    return sum(disk.counts.values())


def failures_at(tried: Sequence[int], scenario: Scenario, world: Path, repeat_every: int = 1) -> int:
    """Let each of these operations fail in a run of its own, with each error in turn; return how many runs failed.

    Args:
        repeat_every: of so many runs, one is repeated on a disk that does not fail, and must then succeed.
    """
    wrong, failures = [], 0
    for n in tried:
        try:
            again = n % repeat_every == 0
            failures += attempt(scenario, world, n, ERRORS[n % len(ERRORS)], again)[1].code > 0
        except AssertionError as error:
            wrong.append(str(error).splitlines()[0])
    print(f"{' '.join(scenario.words[:2])}: {len(tried)} operations, {failures} failures")  # noqa: T201
    assert wrong == []
    return failures


@pytest.mark.parametrize("name", quick_on(("edit",), ("merge", "edit")))
def test_a_disk_that_fails_once_is_one_line_and_leaves_nothing(name: str, world: Path) -> None:
    """A sample; the slow test tries every operation."""
    total = all_operations(SCENARIOS[name], world)
    assert total > 30
    step = total / SAMPLED
    outcomes = [
        attempt(SCENARIOS[name], world, 1 + int(k * step), ERRORS[k % len(ERRORS)])[1].code for k in range(SAMPLED)
    ]
    assert 1 in outcomes


@pytest.mark.slow
@pytest.mark.fuzz
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_operation_may_fail(name: str, world: Path) -> None:
    """The n-th open, read, write, fsync and rename, for every n, with each error in turn."""
    total = all_operations(SCENARIOS[name], world)
    # What is replaced is written as any merge is, up to the last renames. A failed run leaves the folder as it was: it need
    # not be repeated after each n to show that it then succeeds.
    first = total - 20 if SCENARIOS[name].older else 1
    tried = range(first, total + 1)
    assert failures_at(tried, SCENARIOS[name], world, repeat_every=5) > len(tried) // 4


@pytest.mark.slow
@pytest.mark.fuzz
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", STUDIES)
def test_an_operation_of_a_study_may_fail(name: str, world: Path) -> None:
    """Some of the operations of the commands that study, stitch and repair, or all: the same run then goes on and succeeds."""
    total = all_operations(STUDIES[name], world)
    tried = (
        range(1, total + 1)
        if STUDY_SAMPLED is None
        else [round((k + 0.5) * total / STUDY_SAMPLED) for k in range(STUDY_SAMPLED)]
    )
    assert failures_at(tried, STUDIES[name], world) > len(tried) // 5
