"""No local path leaves the machine with a push, and the pushed folder still agrees with its manifest."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import save_checkpoint

from merge.errors import HubError
from merge.publish.private_paths import public_files
from merge.publish.push import plan_push
from merge.recipe.recipe import make_recipe
from merge.run.run import run
from merge.run.verify import verify


def merged(tmp_path: Path, first: str, second: str, **record: Any) -> Path:
    save_checkpoint(tmp_path / first, seed=0)
    save_checkpoint(tmp_path / second, seed=1)
    output = tmp_path / "secret" / "out"
    models = [str(tmp_path / first), str(tmp_path / second)]
    run(make_recipe({"models": models, "output": str(output), **record}))
    return output


@pytest.mark.parametrize(
    "record",
    [{}, pytest.param({"align": {"by": "weights"}}, marks=pytest.mark.slow)],
    ids=["linear", "aligned"],
)
def test_a_pushed_folder_names_its_inputs_without_their_folders(record: dict[str, Any], tmp_path: Path) -> None:
    """Every file as pushed is searched for the folder; the files in place keep their paths, and verify holds for both."""
    folder = merged(tmp_path, "zoo/a", "zoo/b", **record)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert any(str(tmp_path).encode() in data for data in before.values())  # the control: there is something to remove
    plan = plan_push(folder, "me/merged", None)
    copy = tmp_path / "copy"
    for path, data in before.items():
        target = copy / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(plan.rewritten.get(path.relative_to(folder).as_posix(), data))
    assert not [path for path in copy.rglob("*") if path.is_file() and str(tmp_path).encode() in path.read_bytes()]
    assert {name: (copy / name).stat().st_size for name, _ in plan.files} == dict(plan.files)
    assert verify(copy).holds
    assert verify(folder).holds
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    card = (copy / "README.md").read_text(encoding="utf-8")
    assert "from_pretrained('me/merged')" in card
    assert "| a | local |" in card
    assert "from_pretrained('out')" in before[folder / "README.md"].decode()


def test_two_models_of_one_name_keep_the_folder_that_tells_them_apart(tmp_path: Path) -> None:
    rewritten = public_files(merged(tmp_path, "run1/best", "run2/best"), "me/merged")
    sources = [model["source"] for model in json.loads(rewritten["merge.json"])["models"]]
    assert sources == ["run1/best", "run2/best"]


def test_a_path_of_the_home_folder_that_the_manifest_does_not_know_stops_the_push(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = merged(tmp_path, "a", "b")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    plan_push(folder, "me/merged", None)
    (folder / "notes.txt").write_text(f"trained in {tmp_path}/home/project/run", encoding="utf-8")
    with pytest.raises(HubError, match=r"notes\.txt holds a path of this machine, '.*/home/project/run'"):
        plan_push(folder, "me/merged", None)


def test_a_folder_without_a_manifest_is_pushed_as_it_is(tmp_path: Path) -> None:
    """A model that other tools wrote: nothing is known of its paths, nothing is rewritten."""
    save_checkpoint(tmp_path / "a", seed=0)
    (tmp_path / "a" / "README.md").write_text("# mine", encoding="utf-8")
    assert public_files(tmp_path / "a", "me/mine") == {}


def test_a_path_is_replaced_as_a_whole_only(tmp_path: Path) -> None:
    """zoo/a must not be replaced inside zoo/abc or my/zoo/a."""
    text = "zoo/a zoo/abc my/zoo/a zoo/a/config.json"
    manifest = {"name": "out", "files": {"README.md": ""}, "models": [{"source": "zoo/a", "commit": None}]}
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    (tmp_path / "merge.json").write_text(json.dumps(manifest), encoding="utf-8")
    rewritten = public_files(tmp_path, "me/x")
    assert rewritten["README.md"].decode() == "a zoo/abc my/zoo/a a/config.json"
    digest = hashlib.sha256(rewritten["README.md"]).hexdigest()
    assert json.loads(rewritten["merge.json"])["files"] == {"README.md": digest}


def as_pushed(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder by name, with the bytes that a push sends."""
    plan = plan_push(folder, "me/pushed", None)
    return {name: plan.rewritten.get(name, (folder / name).read_bytes()) for name, _ in plan.files}


def written_folder(folder: Path, source: str, **more: Any) -> Path:
    """Write a card and a manifest that name a model and hold a sentence or a command beside it."""
    folder.mkdir()
    record = {"name": "out", "files": {"README.md": ""}, "models": [{"source": source, "commit": None}], **more}
    (folder / "merge.json").write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")
    (folder / "README.md").write_text("\n".join(map(str, more.values())), encoding="utf-8")
    return folder


def test_a_tokenizer_is_pushed_as_it_is_though_a_token_reads_like_a_models_path(tmp_path: Path) -> None:
    """`merge-models a/ b/`: the path a/ is a token of byte-level vocabularies. The card's own path is replaced: the control."""
    folder = written_folder(tmp_path / "out", "a/", notes=["a/ scores 3"])
    vocabulary = {"model": {"vocab": {"a/": 0, "the": 1}, "merges": [["a", "/"]]}, "label": "a/"}
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    rewritten = public_files(folder, "me/x")
    assert "tokenizer.json" not in rewritten
    assert rewritten["README.md"].decode() == "['a scores 3']"


def test_a_path_of_the_inputs_is_replaced_in_their_configs_too(tmp_path: Path) -> None:
    folder = written_folder(tmp_path / "out", f"{tmp_path}/zoo/a", notes=[])
    (folder / "config.json").write_text(json.dumps({"_name_or_path": f"{tmp_path}/zoo/a"}), encoding="utf-8")
    assert json.loads(public_files(folder, "me/x")["config.json"]) == {"_name_or_path": "a"}


def test_a_sentence_that_begins_with_a_path_keeps_its_words(tmp_path: Path) -> None:
    """A note is no path, though it begins with one and names two; a command holds paths that the manifest states nowhere."""
    note = f"{tmp_path}/zoo/a and /srv/zoo/b were measured on one text, /srv/data/c.txt. The method wants two."
    command = "/srv/env/bin/python ~/work/score.py {model} --task mnli/accuracy --url https://host/x/y"
    folder = written_folder(tmp_path / "out", f"{tmp_path}/zoo/a", notes=[note], scorer=command)
    stated = json.loads(public_files(folder, "me/x")["merge.json"])
    assert stated["notes"] == ["a and b were measured on one text, c.txt. The method wants two."]
    assert stated["scorer"] == "python score.py {model} --task mnli/accuracy --url https://host/x/y"


@pytest.mark.parametrize("name", ['it\'s a "model"', "Modèles é", "two words, of which there are many more to come"])
def test_a_path_of_any_letters_is_replaced_in_json_and_in_folded_yaml(name: str, tmp_path: Path) -> None:
    """JSON escapes quotes, YAML doubles them and breaks long lines at blanks."""
    parent = tmp_path / f"PRIVATE {name} {name}"
    folder = merged(parent, "a one", "b")
    assert b"PRIVATE" in (folder / "recipe.yaml").read_bytes()  # the control: there is something to remove
    assert not [file for file, data in as_pushed(folder).items() if b"PRIVATE" in data]
    models = yaml.safe_load(as_pushed(folder)["recipe.yaml"])["models"]
    assert models == ["a one", "b"]


@pytest.mark.parametrize(
    "line",
    ["AutoModel.from_pretrained('out')", "SentenceTransformer('out')", "CrossEncoder('out')", "models.ColBERT('out')"],
)
def test_the_card_of_every_library_loads_the_repository(line: str, tmp_path: Path) -> None:
    folder = written_folder(tmp_path / "renamed", "zoo/a", notes=[])
    (folder / "README.md").write_text(f"# out\n\nmodel = {line}\nother = {line}\n", encoding="utf-8")
    card = public_files(folder, "me/x")["README.md"].decode()
    assert card == f"# out\n\nmodel = {line.replace('out', 'me/x')}\nother = {line}\n"


def test_the_card_of_an_edited_folder_that_was_renamed_loads_the_repository(tmp_path: Path) -> None:
    """edit.json states no name: the card's title does."""
    folder = written_folder(tmp_path / "renamed", "zoo/a", notes=[])
    manifest = json.loads((folder / "merge.json").read_text(encoding="utf-8"))
    (folder / "merge.json").unlink()
    (folder / "edit.json").write_text(json.dumps({k: v for k, v in manifest.items() if k != "name"}), encoding="utf-8")
    (folder / "README.md").write_text("# halved\n\nmodel = AutoModel.from_pretrained('halved')\n", encoding="utf-8")
    assert "from_pretrained('me/x')" in public_files(folder, "me/x")["README.md"].decode()


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"models": 3}, "merge.json: models: expected a list, found 3."),
        ({"models": [3]}, "an input is malformed: a JSON object was expected, found 3."),
        ({"models": [{"source": 5}]}, 'an input: source: expected text, found 5.'),
        ({"models": [{}]}, "an input has no source."),
        ({"base": "b"}, 'merge.json: base: expected keys and values, found "b".'),
        ({"models": None, "base": None}, None),
    ],
)  # fmt: skip
def test_a_manifest_that_was_edited_is_one_line(entries: dict[str, Any], said: str | None, tmp_path: Path) -> None:
    """The control: what is null is as good as absent."""
    text = json.dumps({"files": {}, "name": "out", **entries})
    (tmp_path / "merge.json").write_text(text, encoding="utf-8")
    if said is None:
        assert public_files(tmp_path, "me/merged") == {}
    else:
        with pytest.raises(HubError, match=re.escape(said)):
            public_files(tmp_path, "me/merged")
