from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlsi_cli import __version__
from vlsi_cli.engine.verbalizing import (
    ARCHITECTURES,
    Verbalizers,
    decoder_layers_like,
    files,
    head_fingerprint,
    load_verbalizers,
    read_manifest,
    save_verbalizers,
)
from vlsi_cli.errors import CheckpointError, OutputError


def make(tiny, architecture="verb-ffn", layers=(2, 3)):
    return Verbalizers(
        layers,
        16,
        40,
        architecture,
        init="random",
        norm=tiny.norm,
        decoder_factory=decoder_layers_like(tiny.model.model.layers),
        seed=3,
    )


def save(path, tiny, architecture="verb-ffn", **options):
    facts = {
        "base_id": "org/base",
        "base_revision": "abc123",
        "head_sha256": head_fingerprint(tiny.head),
        "training": {"steps": 7, "loss": {"2": 3.5}},
        **options,
    }
    return save_verbalizers(path, make(tiny, architecture), **facts)


def load(path, tiny, **options):
    facts = {
        "base_id": "org/mine",
        "head_sha256": head_fingerprint(tiny.head),
        "hidden_size": 16,
        "norm": tiny.norm,
        "decoder_factory": decoder_layers_like(tiny.model.model.layers),
        **options,
    }
    return load_verbalizers(path, **facts)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_saved_is_what_is_loaded(tmp_path, tiny, architecture):
    saved = save(tmp_path / "deep" / "set", tiny, architecture)
    loaded, manifest = load(tmp_path / "deep" / "set", tiny, layers=[2, 3])
    assert manifest == saved == read_manifest(tmp_path / "deep" / "set")
    original = make(tiny, architecture)
    assert loaded.state_dict().keys() == original.state_dict().keys()
    assert torch.equal(loaded(2, tiny.state, tiny.call), original(2, tiny.state, tiny.call))
    assert all(p.requires_grad and p.dtype == torch.float32 for p in loaded.parameters())
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["set"]


def test_the_manifest_tells_where_the_set_comes_from(tmp_path, tiny):
    save(tmp_path / "set", tiny)
    raw = json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert raw["base_id"] == "org/base"
    assert raw["base_revision"] == "abc123"
    assert raw["layers"] == [2, 3]
    assert raw["architecture"] == "verb-ffn"
    assert raw["training"] == {"steps": 7, "loss": {"2": 3.5}}
    assert raw["versions"]["vlsi"] == __version__
    assert raw["versions"]["torch"].startswith(torch.__version__.split("+")[0])


def test_a_set_for_another_base_is_refused_with_both_sides_named(tmp_path, tiny):
    save(tmp_path / "set", tiny)
    with pytest.raises(CheckpointError, match=r"org/base at abc123 through the head .*org/mine is "):
        load(tmp_path / "set", tiny, head_sha256=head_fingerprint(tiny.head + 1))
    with pytest.raises(CheckpointError, match=r"org/base at abc123, which is 16 wide; org/mine is 32 wide"):
        load(tmp_path / "set", tiny, hidden_size=32)
    with pytest.raises(CheckpointError, match=r"for layers 2, 3; this run wants layers 2, 4 of org/mine"):
        load(tmp_path / "set", tiny, layers=[2, 4])


def test_a_damaged_tensor_file_is_refused(tmp_path, tiny):
    save(tmp_path / "set", tiny)
    file = tmp_path / "set" / "verbalizers.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="damaged: its SHA-256"):
        load(tmp_path / "set", tiny)
    file.write_bytes(whole[:100])
    with pytest.raises(CheckpointError, match="damaged: its SHA-256"):
        load(tmp_path / "set", tiny)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"verbalizers\.safetensors is missing"):
        load(tmp_path / "set", tiny)


def tamper(path, **changes):
    raw = json.loads((path / "manifest.json").read_text())
    raw.update(changes)
    (path / "manifest.json").write_text(json.dumps({k: v for k, v in raw.items() if v != "drop"}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 9}, "has format version 9; this vlsi"),
        ({"layers": [2, "3"]}, "damaged: layers is"),
        ({"architecture": "moe"}, "damaged: architecture is 'moe'"),
        ({"head_sha256": "drop"}, "missing or unknown head_sha256"),
        ({"surprise": 1}, "missing or unknown surprise"),
        ({"architecture": "ffn"}, "not what its manifest describes"),
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path, tiny, changes, message):
    save(tmp_path / "set", tiny)
    tamper(tmp_path / "set", **changes)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "set", tiny)


def test_a_manifest_that_is_not_json_is_refused(tmp_path, tiny):
    save(tmp_path / "set", tiny)
    for text in ("{", "[]"):
        (tmp_path / "set" / "manifest.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"manifest\.json"):
            load(tmp_path / "set", tiny)


def test_tensors_of_another_dtype_are_refused(tmp_path, tiny):
    save(tmp_path / "set", tiny)
    file = tmp_path / "set" / "verbalizers.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file)
    tamper(tmp_path / "set", tensors_sha256=files.file_sha256(file))
    with pytest.raises(CheckpointError, match="not fp32"):
        load(tmp_path / "set", tiny)


def test_a_pickle_is_never_read(tmp_path, tiny):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    (tmp_path / "folder").mkdir()
    for legacy in (True, False):
        pickle = tmp_path / "folder" / "verbalizers.pt"
        torch.save(Trap(), pickle, _use_new_zipfile_serialization=not legacy)
        for path in (pickle, tmp_path / "folder"):
            with pytest.raises(CheckpointError, match="is a pickle"):
                load(path, tiny)
        save(tmp_path / f"set{legacy}", tiny)
        (tmp_path / f"set{legacy}" / "verbalizers.safetensors").write_bytes(pickle.read_bytes())
        with pytest.raises(CheckpointError, match="is a pickle"):
            load(tmp_path / f"set{legacy}", tiny)
    assert not (tmp_path / "sprung").exists()


def test_nothing_there(tmp_path, tiny):
    with pytest.raises(CheckpointError, match=r"manifest\.json is missing"):
        load(tmp_path / "nowhere", tiny)


def test_an_existing_folder_is_kept_unless_it_is_a_set_to_overwrite(tmp_path, tiny):
    save(tmp_path / "set", tiny)
    with pytest.raises(OutputError, match="exists already"):
        save(tmp_path / "set", tiny)
    save(tmp_path / "set", tiny, "mlp", overwrite=True)
    assert read_manifest(tmp_path / "set").architecture == "mlp"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("precious")
    with pytest.raises(OutputError, match="exists already"):
        save(tmp_path / "other", tiny, overwrite=True)
    assert (tmp_path / "other" / "thesis.txt").read_text() == "precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "set"]


def test_a_full_disk_is_one_sentence_and_leaves_the_old_set(tmp_path, tiny, monkeypatch):
    save(tmp_path / "set", tiny)

    def full(tensors, file, metadata=None):
        Path(file).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(OutputError, match="no space is left on the disk"):
        save(tmp_path / "set", tiny, "mlp", overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set"]
    assert load(tmp_path / "set", tiny)[1].architecture == "verb-ffn"


def test_a_parent_that_is_a_file_is_one_sentence(tmp_path, tiny):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        save(tmp_path / "file" / "set", tiny)


def test_the_fingerprint_is_that_of_the_values_not_of_the_loading(tiny):
    head = torch.randn(9001, 3).bfloat16()
    same = head_fingerprint(head)
    assert head_fingerprint(head.float()) == same
    assert head_fingerprint(head.T.contiguous().T) == same
    changed = head.clone()
    changed[9000, 2] += 1
    assert head_fingerprint(changed) != same
    assert head_fingerprint(head.reshape(3, 9001)) != same
