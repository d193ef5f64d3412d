from __future__ import annotations

import hashlib
import json
import pickle
import re
import shutil
import zipfile

import numpy as np
import pytest
from autogaze_backend import ModelSpec
from autogaze_client import CheckpointError, NotFoundError
from autogaze_export import build, load_checkpoint
from goldens import checkpoint
from safetensors import safe_open
from safetensors.numpy import load_file, save_file


@pytest.fixture
def folder(seeded_checkpoint, tmp_path):
    """A copy of the seeded checkpoint that a test may break."""
    return shutil.copytree(seeded_checkpoint(), tmp_path / "checkpoint")


def edit_config(folder, **changes):
    """Sets keys by dotted path."""
    config = json.loads((folder / "config.json").read_text())
    for path, value in changes.items():
        *parents, key = path.split("__")
        target = config
        for parent in parents:
            target = target[parent]
        if value is ...:
            del target[key]
        else:
            target[key] = value
    (folder / "config.json").write_text(json.dumps(config))


def test_the_seeded_checkpoint_is_the_one_the_goldens_were_recorded_with(seeded_checkpoint):
    loaded = load_checkpoint(seeded_checkpoint())
    digest = hashlib.sha256()
    for name in sorted(loaded.tensors):
        digest.update(loaded.tensors[name].tobytes())
    assert digest.hexdigest() == "e84a7028ce6fc5bd370bf41c855bbed410ac18c6fe2cc0d2f4c07dbeda21c057"
    assert sum(tensor.size for tensor in loaded.tensors.values()) == 3_258_240
    assert loaded.stored_dtype == "F32"


def write_bfloat16(folder):
    """safetensors cannot write BF16 from numpy, so the file is laid out here."""
    tensors = load_file(folder / "model.safetensors")
    header, data = {}, b""
    for name, tensor in tensors.items():
        raw = (np.ascontiguousarray(tensor).view(np.uint32) >> 16).astype("<u2").tobytes()
        header[name] = {
            "dtype": "BF16",
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    return tensors


def test_half_precision_files_are_converted_exactly(folder):
    tensors = load_file(folder / "model.safetensors")
    halves = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    save_file(halves, folder / "model.safetensors")
    loaded = load_checkpoint(folder)
    assert loaded.stored_dtype == "F16"
    for name, half in halves.items():
        assert loaded.tensors[name].dtype == np.float32
        np.testing.assert_array_equal(loaded.tensors[name], half.astype(np.float32))


def test_bfloat16_files_are_converted_exactly(folder):
    original = write_bfloat16(folder)
    loaded = load_checkpoint(folder)
    assert loaded.stored_dtype == "BF16"
    for name, tensor in original.items():
        # Truncation of a float32 to its upper half loses at most 2^-7 of the value.
        np.testing.assert_allclose(loaded.tensors[name], tensor, rtol=2**-7)
        assert not (loaded.tensors[name].view(np.uint32) & 0xFFFF).any()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_bundle_of_a_half_precision_file_runs_in_float32(dtype, folder, tmp_path):
    from autogaze_backend import GazeModel
    from goldens import clips

    if dtype == "float16":
        tensors = {
            name: tensor.astype(np.float16)
            for name, tensor in load_file(folder / "model.safetensors").items()
        }
        save_file(tensors, folder / "model.safetensors")
    else:
        write_bfloat16(folder)
    bundle = build(folder, tmp_path / "bundle")
    with safe_open(bundle / "weights.safetensors", framework="numpy") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F32"}  # noqa: SIM118
    video = clips.normalise(clips.synthetic_clip(1, 224, 224, 1))[None]
    assert GazeModel.load(bundle).generate(video, gazing_ratio=0.1).tokens_of_rows.tolist() == [[26]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'; only 'autogaze' is supported"),
        ({"scales": "32+x"}, r"scales is '32\+x'"),
        ({"scales": ...}, "scales is missing"),
        ({"num_vision_tokens_each_frame": None}, "num_vision_tokens_each_frame is None; expected an integer"),
        ({"num_vision_tokens_each_frame": 264}, "eos_token_id is 265; only 264"),
        ({"gaze_model_config__gaze_decoder_config__hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu'"),
        (
            {"gaze_model_config__gaze_decoder_config__num_key_value_heads": 2},
            "num_key_value_heads is 2; only 6",
        ),
        ({"gaze_model_config__gaze_decoder_config__head_dim": 64}, "6 heads of head_dim 64"),
        (
            {"gaze_model_config__gaze_decoder_config__tie_word_embeddings": True},
            "tie_word_embeddings is True",
        ),
        ({"gaze_model_config__gaze_decoder_config__attention_bias": True}, "attention_bias is True"),
        ({"gaze_model_config__gaze_decoder_config__rope_scaling__rope_type": "yarn"}, "rope_type is 'yarn'"),
        ({"gaze_model_config__vision_model_config__temporal_patch_size": 2}, "temporal_patch_size is 2"),
        ({"gaze_model_config__vision_model_config__hidden_dim": 96}, "hidden_dim is 96; only 192"),
        (
            {"gaze_model_config__vision_model_config": []},
            "vision_model_config is list; expected a JSON object",
        ),
    ],
)
def test_a_config_outside_what_is_supported_is_refused(change, message, folder):
    edit_config(folder, **change)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


def test_a_config_with_generic_keys_is_accepted(folder):
    edit_config(folder, torch_dtype="float32", transformers_version="4.51.3", id2label={"0": "a"})
    assert load_checkpoint(folder).spec.tokens_per_frame == 265


def test_a_missing_tensor_is_named(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["gazing_model.gaze_decoder.lm_head.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"lacks 1 of 49 tensors: gazing_model\.gaze_decoder\.lm_head\.weight"
    ):
        load_checkpoint(folder)


def test_a_wrong_shape_is_named_with_both_shapes(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["gazing_model.connector.pos_embed"] = np.zeros((100, 192), np.float32)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"pos_embed has shape \(100, 192\); config\.json asks for \(196, 192\)"
    ):
        load_checkpoint(folder)


def test_another_dtype_is_refused(folder):
    tensors = load_file(folder / "model.safetensors")
    name = "gazing_model.connector.pos_embed"
    tensors[name] = tensors[name].astype(np.float64)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="pos_embed is of type F64; expected one of F32, F16, BF16"):
        load_checkpoint(folder)


def test_values_that_are_not_finite_are_refused(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["gazing_model.connector.pos_embed"][3, 4] = np.nan
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="pos_embed holds NaN"):
        load_checkpoint(folder)


def test_a_truncated_file_is_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="no valid safetensors file"):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt", "weights.pkl"])
def test_pickled_weights_are_not_read(name, folder):
    (folder / "model.safetensors").rename(folder / name)
    remedy = r"never read.*safetensors\.torch\.save_file"
    with pytest.raises(NotFoundError, match=rf"no model\.safetensors, only {re.escape(name)}; .*{remedy}"):
        load_checkpoint(folder)


class Booby:
    """Pickled, it leaves a file behind where someone loads it."""

    def __init__(self, trace) -> None:
        self.trace = trace

    def __reduce__(self):
        return (type(self.trace).touch, (self.trace,))


@pytest.mark.parametrize("form", ["pickle", "zip"])
def test_a_pickle_under_the_name_of_safetensors_is_refused_and_not_run(form, folder, tmp_path):
    trace = tmp_path / "it-ran"
    content = pickle.dumps(Booby(trace))
    path = folder / "model.safetensors"
    if form == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", content)
    else:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"is a pickle under another name; .*never read"):
        load_checkpoint(folder)
    assert not trace.exists()
    pickle.loads(content)
    assert trace.exists(), "this pickle would not have done anything"


def test_a_file_in_the_place_of_a_folder_is_refused(folder):
    (folder / "model.safetensors").rename(folder / "model.pt")
    with pytest.raises(CheckpointError, match=r"model\.pt is a file; pass the folder.*never read"):
        load_checkpoint(folder / "model.pt")


def test_a_hash_pins_the_weights(folder):
    found = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert load_checkpoint(folder, sha256=found.upper()).sha256 == found
    with pytest.raises(CheckpointError, match=f"has SHA-256 {found}, but {'0' * 64} was asked for"):
        load_checkpoint(folder, sha256="0" * 64)


def test_links_are_followed_where_a_checkpoint_is_read(folder, tmp_path):
    """A hub cache is made of them."""
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in folder.iterdir():
        (linked / path.name).symlink_to(path)
    assert load_checkpoint(linked).sha256 == load_checkpoint(folder).sha256


def test_a_broken_config_is_named(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is no valid JSON"):
        load_checkpoint(folder)


@pytest.mark.parametrize("source", ["./nowhere", "nowhere", "/no/such/folder"])
def test_a_folder_that_does_not_exist_is_named(source):
    with pytest.raises(NotFoundError, match="neither an existing folder, nor a hub id"):
        load_checkpoint(source)


def test_a_hub_id_offline_says_so(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(NotFoundError, match=r"'nvidia/AutoGaze' is no folder here.*hub cannot be reached"):
        load_checkpoint("nvidia/AutoGaze")


def test_the_open_checkpoint_comes_with_the_package():
    loaded = load_checkpoint("open")
    assert loaded.stored_dtype == "F16"
    assert loaded.spec.graph_name == ModelSpec.from_config(checkpoint.config()).graph_name


def test_a_folder_called_open_comes_first(seeded_checkpoint, tmp_path, monkeypatch):
    shutil.copytree(seeded_checkpoint("single"), tmp_path / "open")
    monkeypatch.chdir(tmp_path)
    assert load_checkpoint("open").spec.group_size == 1


def test_the_single_scale_layout_is_read(seeded_checkpoint):
    spec = load_checkpoint(seeded_checkpoint("single")).spec
    assert (spec.group_size, spec.tokens_per_frame, spec.scales) == (1, 196, (224,))
    assert checkpoint.shapes("single").keys() == load_checkpoint(seeded_checkpoint("single")).tensors.keys()
