"""What goes along into a merge is a list of what belongs to a model; whatever else stands in its folder stays there."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import transformers

from merge.checkpoints.side_files import WEIGHT_ENDINGS, side_files

BELONGS = [
    # tokenizers of every kind, processors, generation
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json",
    "merges.txt", "spiece.model", "sentencepiece.bpe.model", "spm.model", "tokenizer.model", "bpe.codes", "source.spm",
    "qwen.tiktoken", "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
    "generation_config.json", "chat_template.jinja", "chat_template.json", "additional_chat_templates/rag.jinja",
    "custom_generate/generate.py",
    # sentence-transformers of every version
    "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json", "sentence_roberta_config.json",
    "sentence_xlm-roberta_config.json", "1_Pooling/config.json", "2_Dense/config.json", "3_Normalize/config.json",
    "4_WordWeights/config.json", "1_LSTM/lstm_config.json", "1_SpladePooling/config.json", "query_0/idf.json",
    "query_0/tokenizer.json", "config_setfit.json",
    # licences
    "LICENSE", "LICENSE.txt", "LICENCE.md", "license", "NOTICE", "Notice.txt", "USE_POLICY.md", "COPYING",
    "THIRD_PARTY_NOTICES.txt", "LICENSE-APACHE", "MODEL_LICENSE.pdf", "licenses/apache.txt",
    # code that configs name, and what it imports
    "modeling_own.py", "configuration_own.py", "layers_own.py", "pooling_own.py", "tokenization_own.py",
]  # fmt: skip
STAYS = [
    # weights of other formats
    "model.Q4_K_M.gguf", "onnx/model.onnx", "onnx/model.onnx_data", "onnx/config.json", "onnx/tokenizer.json",
    "openvino/openvino_model.xml", "openvino/openvino_model.bin", "tf_model.h5", "flax_model.msgpack", "rust_model.ot",
    "coreml/fill-mask/float32_model.mlpackage/Data/com.apple.CoreML/weights/weight.bin", "model.tflite", "saved_model.pb",
    "model_head.pkl", "model.pth", "consolidated.00.pth", "model.ckpt-1000.data-00000-of-00001", "model.npz", "ggml.bin",
    "model.engine", "model.mar", "model.fp16.safetensors", "pytorch_model.bin", "1_Pooling/model.onnx",
    "2_Dense/pytorch_model.bin", "adapter_model.safetensors",
    # scores, logs, reports
    "eval_results.json", "all_results.json", "train_results.json", "test_results.txt", "predictions.txt", "results.json",
    "mteb/STS12.json", "eval/similarity_evaluation_sts-dev_results.csv", "1_Pooling/eval_results.json",
    "2_Dense/train.jsonl", "wandb/run-1/files/config.yaml", "wandb/run-1/run.wandb", "runs/May/events.out.tfevents.1",
    "events.out.tfevents.1", "mlruns/0/meta.yaml", "trainer_log.jsonl", "train.log", "nohup.out", "loss.png",
    "alignment.png", "emissions.csv", "logs/config.json", "trainer_state.json", "training_args.bin", "training_args.json",
    # data, code and papers of their own
    "train.jsonl", "data/train.csv", "dev.tsv", "corpus.txt", "train.parquet", "train.py", "run.sh", "notebook.ipynb",
    "requirements.txt", "Dockerfile", "paper.pdf", "CITATION.cff", "README_zh.md", "figures/a.jpg", "setup.py",
    # training state and other checkpoints
    "optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state_0.pth", "checkpoint-500/config.json", "zero_to_fp32.py",
    "checkpoint-500/tokenizer.json", "global_step100/mp_rank_00_model_states.pt", "latest",
    # what tells how this model was made
    "merge.json", "recipe.yaml", "edit.json", "mergekit_config.yml", "transform.safetensors", "adapter_config.json",
    "config.old.json", "modelcard.json", "model_index.json", "original/params.json",
]  # fmt: skip


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}", encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with everything of both lists, and configs that name its code."""
    write(tmp_path, *BELONGS, *STAYS, "config.json", "README.md", "model.safetensors", ".gitattributes", ".cache/x")
    auto = {"AutoModel": "modeling_own.OwnModel", "AutoConfig": "configuration_own.OwnConfig"}
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": auto}), encoding="utf-8")
    tokenizer = {"auto_map": {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    code = "import torch\nfrom .layers_own import Layer\nfrom .configuration_own import OwnConfig\n"
    (tmp_path / "modeling_own.py").write_text(code, encoding="utf-8")
    modules = [
        {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "path": "query_0", "type": "pooling_own.OwnPooling"},
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    return tmp_path


def test_every_file_goes_along_or_is_left_behind_as_listed(folder: Path) -> None:
    """Nothing is in neither list but hidden files, the config and the card, which are written anew."""
    side, left = side_files(folder, {"model.safetensors"})
    assert list(side) == sorted(BELONGS)
    assert list(left) == sorted(STAYS)


def test_code_that_nothing_names_stays(folder: Path) -> None:
    """The negative control: the same files without the configs that name them are scripts like any other."""
    for name in ("config.json", "tokenizer_config.json", "modules.json"):
        (folder / name).write_text("{}", encoding="utf-8")
    side, left = side_files(folder, {"model.safetensors"})
    assert not [name for name in side if name.endswith("_own.py")]
    assert {"modeling_own.py", "pooling_own.py", "layers_own.py"} <= set(left)


@pytest.mark.parametrize("name", ["../outside.Model", "/etc/passwd.Model", "org/name--modeling_own.Model", "a/b.Model"])
def test_code_outside_the_folder_is_never_copied(name: str, tmp_path: Path) -> None:
    write(tmp_path / "m", "modeling_own.py")
    write(tmp_path, "outside.py")
    (tmp_path / "m/config.json").write_text(json.dumps({"auto_map": {"AutoModel": name}}), encoding="utf-8")
    assert side_files(tmp_path / "m", set()) == ((), ("modeling_own.py",))


def tokenizer_files() -> set[str]:
    """Return the values of every VOCAB_FILES_NAMES in transformers' source, which costs less than to import its classes."""
    names: set[str] = set()
    for path in Path(transformers.__file__).parent.glob("models/*/tokenization_*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            target = node.targets[0] if isinstance(node, ast.Assign) else None
            if isinstance(target, ast.Name) and target.id == "VOCAB_FILES_NAMES" and isinstance(node.value, ast.Dict):
                names |= {value.value for value in node.value.values if isinstance(value, ast.Constant)}
    return names


def test_the_files_of_every_tokenizer_of_transformers_belong(tmp_path: Path) -> None:
    """By each class's own list of its files, so that a new kind of tokenizer does not lose its vocabulary."""
    files = tokenizer_files()
    assert len(files) >= 15
    assert {"vocab.txt", "merges.txt", "spiece.model", "entity_vocab.json"} <= files
    side, left = side_files(write(tmp_path, *files), set())
    assert set(side) == files
    assert left == ()


@pytest.mark.parametrize("content", ["", "no json", "[1, 2]", "{}", '[{"path": 3}]', '[{"type": null}]'])
def test_a_malformed_list_of_modules_names_no_file(content: str, tmp_path: Path) -> None:
    """Whoever reads modules.json says what is wrong with it; here the folders' names decide."""
    write(tmp_path, "1_Pooling/config.json", "extra/config.json")
    (tmp_path / "modules.json").write_text(content, encoding="utf-8")
    assert side_files(tmp_path, set()) == (("1_Pooling/config.json", "modules.json"), ("extra/config.json",))


def test_no_weight_file_belongs(tmp_path: Path) -> None:
    names = [
        f"{stem}{ending}" for stem in ("model", "tokenizer", "1_Pooling/model", "vocab") for ending in WEIGHT_ENDINGS
    ]
    side, _ = side_files(write(tmp_path, *names), set())
    assert side == ()
