"""Reload check: what was written is loaded as its users load it, and run on made-up inputs of every kind it reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import LABELS, SIZES
from families_more import CASES, IMAGE
from quick import quick_on
from safetensors.torch import load_file, save_file
from tiny import bert_config, random_tensors, save_checkpoint
from torch import Tensor

import merge.checkpoints.reload_check
from merge.checkpoints.reload_check import reload_check, trial_batch
from merge.checkpoints.transformers_model import build, model_class, model_config, set_weights
from merge.errors import OutputError

CONFIG = bert_config()
TENSORS = random_tensors(CONFIG, 0, torch.float32)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("reference") / "m", CONFIG, tensors=TENSORS, tokenizer=False)


def written(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any] = CONFIG) -> tuple[Path, dict[str, Any]]:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder, config


def test_a_sound_checkpoint_reloads_without_a_note(reference: Path, tmp_path: Path) -> None:
    assert reload_check(*written(tmp_path / "m", TENSORS), reference) == ()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"classifier.weight": None}, "missing classifier.weight"),
        ({"extra": torch.ones(1)}, "unexpected extra"),
        ({"classifier.weight": torch.ones(3, 25)}, r"classifier.weight is \(3, 25\), not \(3, 24\)"),
        ({"classifier.bias": torch.tensor([0.0, float("nan"), 0.0])}, "logits holds NaN or infinity"),
        ({"classifier.bias": torch.tensor([0.0, float("inf"), 0.0])}, "logits holds NaN or infinity"),
    ],
)
def test_a_checkpoint_that_does_not_reload_is_an_error(
    change: dict[str, Tensor | None], expected: str, reference: Path, tmp_path: Path
) -> None:
    """What from_pretrained would only warn of, or what shows in the outputs alone."""
    tensors = {name: tensor for name, tensor in (TENSORS | change).items() if tensor is not None}
    with pytest.raises(OutputError, match=expected) as caught:
        reload_check(*written(tmp_path / "m", tensors), reference)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_back_is_an_error(reference: Path, tmp_path: Path) -> None:
    folder, config = written(tmp_path / "m", TENSORS)
    (folder / "model.safetensors").write_bytes(b"short")
    with pytest.raises(OutputError, match="does not reload"):
        reload_check(folder, config, reference)


def test_a_pooler_that_no_base_model_had_is_a_note(tmp_path: Path) -> None:
    """A model of sentences that never had its pooler is merged as it is, and that is said."""
    config = bert_config("BertModel")
    tensors = {n: t for n, t in random_tensors(config, 0, torch.float32).items() if "pooler" not in n}
    folders = [written(tmp_path / name, tensors, config)[0] for name in ("m", "reference")]
    notes = reload_check(folders[0], config, folders[1])
    assert len(notes) == 1
    assert "of the reference too: missing pooler.dense.bias, pooler.dense.weight" in notes[0]


@pytest.mark.parametrize("part", ["pooler", "classifier.weight", "layer.1"])
def test_what_the_reference_lacks_too_is_no_excuse_for_a_weight_of_the_class(part: str, tmp_path: Path) -> None:
    """A classifier reads its pooler: from_pretrained would fill it with random numbers."""
    tensors = {name: tensor for name, tensor in TENSORS.items() if part not in name}
    folder, config = written(tmp_path / "m", tensors)
    with pytest.raises(OutputError, match=f"does not reload: missing .*{part}"):
        reload_check(folder, config, written(tmp_path / "reference", tensors)[0])


def test_a_tensor_that_was_carried_along_is_no_fault(reference: Path, tmp_path: Path) -> None:
    folder, config = written(tmp_path / "m", TENSORS | {"extra": torch.ones(1)})
    assert reload_check(folder, config, reference, extra=["extra"]) == ()
    with pytest.raises(OutputError, match="unexpected extra"):
        reload_check(folder, config, reference, extra=["other"])


BART: dict[str, Any] = {
    "vocab_size": 18,
    "d_model": 24,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 32,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
T5 = {"vocab_size": 18, "d_model": 24, "d_kv": 6, "d_ff": 40, "num_layers": 1, "num_heads": 4}
PAIR = {"decoder_start_token_id": 0, "pad_token_id": 1}


def case(model_type: str, architecture: str, *sizes: Mapping[str, Any]) -> dict[str, Any]:
    return {"model_type": model_type, "architectures": [architecture], **{k: v for s in sizes for k, v in s.items()}}


# A config, and tensors of all parts it has that must have run: each is spoilt in turn.
KINDS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "vit": (CASES["ViTForImageClassification"], ("vit.embeddings.patch_embeddings.projection.weight",)),
    "deit": (CASES["DeiTModel"], ("embeddings.distillation_token",)),
    "beit": (CASES["BeitForImageClassification"], ("beit.pooler.layernorm.weight",)),
    "clip": (CASES["CLIPModel"], ("text_projection.weight", "visual_projection.weight")),
    "clip text": (CASES["CLIPTextModel"], ("final_layer_norm.weight",)),
    "clip vision": (CASES["CLIPVisionModelWithProjection"], ("visual_projection.weight",)),
    "a residual network": (
        case("resnet", "ResNetModel", {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1]}),
        ("embedder.embedder.convolution.weight",),
    ),
    "bart": (case("bart", "BartModel", BART), ("encoder.layernorm_embedding.weight", "decoder.layers.0.fc2.weight")),
    "bart that classifies": (
        case("bart", "BartForSequenceClassification", BART, LABELS),
        ("classification_head.out_proj.bias", "model.encoder.layers.0.fc1.bias"),
    ),
    "marian": (
        case("marian", "MarianMTModel", BART, {"pad_token_id": 17, "decoder_start_token_id": 17}),
        ("model.decoder.layers.0.encoder_attn.v_proj.weight", "final_logits_bias"),
    ),
    "t5": (
        case("t5", "T5ForConditionalGeneration", T5),
        ("encoder.final_layer_norm.weight", "decoder.final_layer_norm.weight"),
    ),
    "two encoders": (
        case("encoder-decoder", "EncoderDecoderModel", PAIR)
        | {"encoder": {"model_type": "bert", **SIZES}}
        | {
            "decoder": {
                "model_type": "bert",
                **SIZES,
                "vocab_size": 11,
                "is_decoder": True,
                "add_cross_attention": True,
            }
        },
        ("encoder.encoder.layer.0.output.dense.bias", "decoder.bert.encoder.layer.0.output.dense.bias"),
    ),
    "an image told": (
        case("vision-encoder-decoder", "VisionEncoderDecoderModel", PAIR)
        | {"encoder": {"model_type": "vit", **IMAGE}}
        | {"decoder": {"model_type": "bert", **SIZES, "is_decoder": True, "add_cross_attention": True}},
        ("encoder.embeddings.cls_token", "decoder.bert.encoder.layer.0.output.dense.bias"),
    ),
    "an answer as a tuple": (bert_config(return_dict=False), ("classifier.bias",)),
}


def made(config: Mapping[str, Any]) -> Any:
    model = model_class(config)(model_config(config)).eval()
    set_weights(model, {n: t for n, t in random_tensors(config, 1, torch.float32).items() if t.is_floating_point()})
    own = model.state_dict()
    # Variances are no model's own if they are negative.
    set_weights(model, {name: tensor.abs() for name, tensor in own.items() if name.endswith("running_var")})
    return model


@pytest.mark.parametrize("kind", quick_on(KINDS.keys() - {"marian", "two encoders"}, KINDS))
def test_every_part_of_a_model_is_run(kind: str, tmp_path: Path) -> None:
    """Sound, it reloads without a note; with a NaN in any one part it is refused, and with one tensor missing too."""
    config, parts = KINDS[kind]
    made(config).save_pretrained(tmp_path / "m")
    shown = json.loads((tmp_path / "m/config.json").read_text(encoding="utf-8"))
    path = tmp_path / "m/model.safetensors"
    sound = load_file(path)
    assert reload_check(tmp_path / "m", shown, tmp_path / "m") == ()
    for part in parts:
        spoilt = torch.full_like(sound[part], float("nan"))
        save_file(sound | {part: spoilt}, path, metadata={"format": "pt"})
        with pytest.raises(OutputError, match="holds NaN or infinity on random inputs"):
            reload_check(tmp_path / "m", shown, tmp_path / "m")
    save_file({n: t for n, t in sound.items() if n != parts[0]}, path, metadata={"format": "pt"})
    (tmp_path / "reference").mkdir()
    save_file(sound, tmp_path / "reference/model.safetensors", metadata={"format": "pt"})
    (tmp_path / "reference/config.json").write_text(json.dumps(shown), encoding="utf-8")
    with pytest.raises(OutputError, match=f"missing {parts[0]}"):
        reload_check(tmp_path / "m", shown, tmp_path / "reference")


@pytest.mark.parametrize(("kind", "start"), [("bart", 2), ("marian", 17), ("t5", 0), ("two encoders", 0)])
def test_a_decoder_is_given_its_start_and_then_the_text(kind: str, start: int) -> None:
    """T5's config states none, and starts with padding; a smaller vocabulary has the text's ids modulo its size."""
    config = KINDS[kind][0]
    batch = trial_batch(made(config))
    given, ids = batch["decoder_input_ids"], batch["input_ids"]
    assert given[:, 0].tolist() == [start, start]
    assert torch.equal(given[:, 1:], ids[:, :-1] % config.get("decoder", config)["vocab_size"])
    assert given.max() > 2


def test_a_text_ends_once_and_at_its_end() -> None:
    """BART's classifier reads there, and refuses texts with more than one end; one text of the two is padded."""
    batch = trial_batch(made(KINDS["bart that classifies"][0]))
    ends = (batch["input_ids"] == 2).nonzero().tolist()
    assert ends == [[0, int(batch["attention_mask"][0].sum()) - 1], [1, 23]]
    assert ends[0][1] < 23


@pytest.mark.parametrize(
    ("kind", "shapes"),
    [
        ("vit", {"pixel_values": (2, 3, 8, 8)}),
        ("clip", {"input_ids": (2, 24), "attention_mask": (2, 24), "pixel_values": (2, 3, 8, 8)}),
        ("clip text", {"input_ids": (2, 24), "attention_mask": (2, 24)}),
        ("a residual network", {"pixel_values": (2, 3, 64, 64)}),
        ("an image told", {"pixel_values": (2, 3, 8, 8), "decoder_input_ids": (2, 24)}),
    ],
)
def test_inputs_are_those_that_the_model_takes(kind: str, shapes: dict[str, tuple[int, ...]]) -> None:
    assert {name: tuple(t.shape) for name, t in trial_batch(made(KINDS[kind][0])).items()} == shapes


def test_a_model_of_sound_is_loaded_but_not_run_and_that_is_said(tmp_path: Path) -> None:
    """Its inputs cannot be made up from its config; a missing tensor is found all the same."""
    sizes = {key: value for key, value in BART.items() if key not in ("max_position_embeddings", "forced_eos_token_id")}
    transformers.WhisperModel(transformers.WhisperConfig(**sizes)).save_pretrained(tmp_path / "m")
    config = json.loads((tmp_path / "m/config.json").read_text(encoding="utf-8"))
    notes = reload_check(tmp_path / "m", config, tmp_path / "m")
    assert notes == ("WhisperModel was loaded but not run: it reads input_features, which cannot be made up",)
    (tmp_path / "cut").mkdir()
    tensors = load_file(tmp_path / "m/model.safetensors")
    save_file(
        {n: t for n, t in tensors.items() if n != "encoder.layer_norm.bias"},
        tmp_path / "cut/model.safetensors",
        metadata={"format": "pt"},
    )
    (tmp_path / "cut/config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(OutputError, match="missing encoder.layer_norm.bias"):
        reload_check(tmp_path / "cut", config, tmp_path / "m")


def test_a_model_that_refuses_the_inputs_as_its_reference_does_is_loaded_and_that_is_said(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the reference runs, the same refusal is an error: what was written is at fault, not what was made up."""
    bias = torch.tensor([7.0, 0.0, 0.0])
    folder, config = written(tmp_path / "m", TENSORS | {"classifier.bias": bias})
    forward = transformers.BertForSequenceClassification.forward
    refused = {7.0}

    def choosy(self: Any, *args: Any, **more: Any) -> Any:
        if not refused or float(self.classifier.bias[0]) in refused:
            raise ValueError("no such\ninputs")
        return forward(self, *args, **more)

    monkeypatch.setattr(transformers.BertForSequenceClassification, "forward", choosy)
    # The signature stays what it was: inputs are made for what a model takes.
    choosy.__wrapped__ = forward  # type: ignore[attr-defined]
    with pytest.raises(OutputError, match="does not run on random inputs: ValueError: no such inputs. Nothing"):
        reload_check(folder, config, reference)
    assert reload_check(reference, config, reference) == ()
    refused.clear()
    (note,) = reload_check(folder, config, reference)
    assert note.startswith(
        "BertForSequenceClassification was loaded but not run: on random inputs it, and the reference"
    )
    assert note.endswith("says: ValueError: no such inputs")


def test_a_layout_that_is_known_to_load_is_not_loaded_again_unless_asked(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, config = written(tmp_path / "m", TENSORS)
    said = reload_check(folder, config, reference)

    def fail(*_: Any) -> Any:
        raise OutputError("loaded")

    monkeypatch.setattr(merge.checkpoints.reload_check, "_load", fail)
    assert reload_check(folder, config, reference, always=False) == said
    with pytest.raises(OutputError, match="loaded"):
        reload_check(folder, config, reference)
    with pytest.raises(OutputError, match="loaded"):  # another layout is not known
        reload_check(folder, config | {"layer_norm_eps": 1e-7}, reference, always=False)


def test_the_model_that_runs_is_the_one_written() -> None:
    """Made-up inputs tell two models apart: not all of them padding, nor all images black."""
    for kind in ("vit", "bart", "t5", "clip"):
        config = KINDS[kind][0]
        one, two = made(config), made(config)
        set_weights(two, {n: 1.5 * t for n, t in one.state_dict().items() if t.is_floating_point()})
        with torch.inference_mode():
            first, second = (m(**trial_batch(m))[0] for m in (one, two))
        assert (first - second).abs().max() > 1e-3


def test_float16_weights_are_run_in_float32(tmp_path: Path) -> None:
    """Random inputs overflow half precision where real ones would not: 60000 + 60000 is an infinity there."""
    tensors = {name: tensor.half() for name, tensor in TENSORS.items()}
    tensors["classifier.bias"] = torch.full((3,), 60000.0).half()
    tensors["bert.pooler.dense.bias"] = torch.full((24,), 9.0).half()
    tensors["classifier.weight"] = torch.full((3, 24), 500.0).half()
    folder, config = written(tmp_path / "m", tensors)
    assert reload_check(folder, config, folder) == ()
    batch = trial_batch(build(CONFIG, TENSORS))
    assert torch.isinf(build(CONFIG, tensors)(**batch).logits).all()
