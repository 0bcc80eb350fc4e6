"""A warm process is to its caller what a fresh one is, but that torch is imported already."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import hash_seed
import pytest
import warm

PYTHON = [sys.executable, "-c"]


def test_output_input_words_and_exit_code_are_passed_on(tmp_path: Path) -> None:
    code = "import sys; print(sys.argv, input()); print('wrong', file=sys.stderr); sys.exit(3)"
    done = warm.run([*PYTHON, code, "a", "b c"], input="typed\n", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (3, "['-c', 'a', 'b c'] typed\n", "wrong\n")


@pytest.mark.parametrize(
    ("code", "status", "last"),
    [
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
        ("import sys; sys.exit('no')", 1, "no"),
        ("import sys; sys.exit()", 0, ""),
        ("import os; os.kill(os.getpid(), 9)", -9, ""),
        ("import warnings; warnings.warn('old')", 1, "UserWarning: old"),
    ],
)
def test_every_way_to_end_is_that_of_a_fresh_process(code: str, status: int, last: str) -> None:
    command = [sys.executable, "-W", "error", "-c", code]
    fresh, done = subprocess.run(command, capture_output=True, text=True, check=False), warm.run(command)
    assert done.returncode == fresh.returncode == status
    assert (done.stderr.splitlines() or [""])[-1] == (fresh.stderr.splitlines() or [""])[-1] == last
    assert ("Traceback" in done.stderr) == ("Traceback" in fresh.stderr)


def test_nothing_of_one_process_is_left_in_the_next(tmp_path: Path) -> None:
    """Environment, folder, modules and what was changed in them."""
    change = (
        "import os, json, sys; os.environ['LEFT'] = '1'; os.chdir('/'); json.left = sys.modules['left'] = json;"
        "print(os.environ['GIVEN'], os.getpid())"
    )
    look = (
        "import os, json, sys; print('LEFT' in os.environ, 'GIVEN' in os.environ, hasattr(json, 'left'), os.getcwd())"
    )
    first = warm.run([*PYTHON, change], env={"GIVEN": "yes"}, cwd=tmp_path)
    assert first.stdout.startswith("yes ")
    second = warm.run([*PYTHON, look], env={}, cwd=tmp_path)
    assert second.stdout == f"False False False {tmp_path}\n"
    assert warm.run([*PYTHON, "import os; print(os.getpid())"]).stdout.strip() not in first.stdout


def test_a_process_that_hangs_is_killed() -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        warm.run([*PYTHON, "import time; time.sleep(60)"], timeout=0.5)


@pytest.mark.skipif(not warm.FORKS, reason="processes are not forked here")
def test_torch_and_transformers_are_there_already() -> None:
    """What the server is for. The control is a fresh process."""
    code = "import sys; print({'torch', 'transformers', 'merge.run.run'} <= set(sys.modules))"
    assert warm.run([*PYTHON, code]).stdout == "True\n"
    assert subprocess.run([*PYTHON, code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_the_hub_settings_are_those_of_the_environment_given(tmp_path: Path) -> None:
    """huggingface_hub reads them when it is imported, which the server did long ago."""
    code = "from huggingface_hub import constants, hf_api; print(constants.ENDPOINT, hf_api.api.endpoint, constants.HF_HOME)"
    done = warm.run([*PYTHON, code], env={"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)})
    assert done.stdout.split() == ["http://127.0.0.1:9", "http://127.0.0.1:9", str(tmp_path)]


@pytest.mark.slow
def test_sets_of_names_have_another_order_in_a_reseeded_process() -> None:
    """Its server was started with a hash seed of its own; the control is one more process, which has the server's too."""
    code = "import hash_seed, json; print(json.dumps(hash_seed.orders()))"
    environment = {"PYTHONPATH": str(Path(hash_seed.__file__).parent)}
    there, again = (json.loads(warm.run([*PYTHON, code], env=environment, reseeded=True).stdout) for _ in range(2))
    assert there == again
    assert all(order != other for order, other in zip(there, hash_seed.orders(), strict=True))
