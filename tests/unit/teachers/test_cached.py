"""A cached teacher says what the live one says, finds records by what they feed a model, and reads only whole rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests import pairs
from vlsi_cli.engine.backbones.load import load_backbone
from vlsi_cli.engine.batch import Batch
from vlsi_cli.engine.data.collate import collate
from vlsi_cli.engine.data.digests import record_digest
from vlsi_cli.engine.data.sources import PatternsSource
from vlsi_cli.engine.data.stream import RecordStream
from vlsi_cli.engine.data.template import ChatEncoder, Encoded
from vlsi_cli.engine.losses import LogitRule, divergence, top_k_of
from vlsi_cli.engine.teachers import CachedTeacher, LiveTeacher
from vlsi_cli.engine.teachers.building import build_shards
from vlsi_cli.engine.teachers.cached import write_head
from vlsi_cli.engine.teachers.manifest import CacheIdentity, CacheManifest, difference
from vlsi_cli.errors import CheckpointError

COUNT = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pairs.tiny_pair(tmp_path_factory.mktemp("pair"))[0]


def teacher(folder: Path, dtype: torch.dtype) -> LiveTeacher:
    backbone = load_backbone(str(folder), dtype=dtype)
    return LiveTeacher(backbone, pairs.verbalizers(backbone, pairs.TARGETS_LARGE), pairs.TARGETS_LARGE, dtype)


def identity(live: LiveTeacher, dtype: str, k: int) -> CacheIdentity:
    return CacheIdentity(
        model="m",
        revision=None,
        weights_sha256="w",
        layers=6,
        hidden_size=live.hidden_size,
        vocabulary_rows=live.head.shape[0],
        kind="top-k" if k else "states",
        k=k,
        content="words",
        targets=live.targets,
        dtype=dtype,
        precision=dtype,
        quantization="none",
        logit_scale=live.backbone.logit_rule.scale,
        logit_softcap=live.backbone.logit_rule.softcap,
        verbalizers_sha256="v",
        vocabulary=live.backbone.tokenizer_length,
        tokenizer="t",
        chat_template="c",
        images="i",
        sources=({"kind": "patterns", "records": COUNT},),
        max_length=512,
        min_pixels=None,
        max_pixels=None,
    )


def built(live: LiveTeacher, path: Path, dtype: str = "fp32", k: int = 0, size: int = 1) -> CachedTeacher:
    encoder = ChatEncoder(live.backbone.processor)
    source = PatternsSource("train", size=COUNT, turns=3)
    stream: RecordStream[Encoded, Batch] = RecordStream(
        [(source, 1.0)], encoder.encode, lambda items: collate(items, encoder.pad_id), seed=0, shuffle=False
    )
    (path / "shards").mkdir(parents=True)
    manifest = CacheManifest(identity(live, dtype, k), {})
    if not k:
        manifest = replace(manifest, head=write_head(path, live.head))
    build_shards(path, manifest, live, stream, pad_id=encoder.pad_id, batch_size=size, shard_bytes=20_000)
    return CachedTeacher(path)


def batch(live: LiveTeacher, *indices: int) -> Batch:
    encoder = ChatEncoder(live.backbone.processor)
    source = PatternsSource("train", size=COUNT, turns=3)
    return collate([encoder.encode(source.read(i)) for i in indices], encoder.pad_id, digests=True)


@pytest.mark.parametrize(("dtype", "name"), [(torch.float32, "fp32"), (torch.bfloat16, "bf16")])
def test_says_what_the_live_one_says(folder: Path, tmp_path: Path, dtype: torch.dtype, name: str) -> None:
    """Bit for bit in the same batches, in the dtype of the model; in any order and for any of the layers."""
    live = teacher(folder, dtype)
    cached = built(live, tmp_path / "cache", name)
    assert len(cached.manifest.shards) > 2 or name == "bf16"
    for index in (4, 0, 5, 0):
        one = batch(live, index)
        said, stored = live.states(one, live.targets), cached.states(one, cached.targets)
        assert set(said.layers) == set(stored.layers) == set(pairs.TARGETS_LARGE)
        for a, b in zip(
            [*said.layers.values(), said.last], [*stored.layers.values(), stored.last], strict=True
        ):
            assert b.dtype == dtype
            assert torch.equal(a, b)
    assert set(cached.states(batch(live, 1), (2, 5)).layers) == {2, 5}
    assert torch.equal(cached.head, live.head)


def test_likeliest_tokens_are_read_while_a_run_computes_in_bf16(folder: Path, tmp_path: Path) -> None:
    """Their log-probabilities are fp16, which autocast would not join."""
    live = teacher(folder, torch.float32)
    cached, two = built(live, tmp_path / "cache", k=5), batch(live, 3, 1)
    plain = cached.states(two, ()).top_k
    with torch.autocast("cpu", torch.bfloat16):
        stored = cached.states(two, ()).top_k
    assert plain is not None
    assert stored is not None
    assert torch.equal(plain.last.log_probs, stored.last.log_probs)


def test_records_of_a_batch_come_in_its_order(folder: Path, tmp_path: Path) -> None:
    live = teacher(folder, torch.float32)
    cached = built(live, tmp_path / "cache", size=4)
    together = batch(live, 3, 1, 5)
    stored, said = cached.states(together, live.targets).last, live.states(together, live.targets).last
    # other batches than those of the build: rounding of products of 64 numbers of order 1
    assert torch.allclose(stored, said, atol=1e-5)
    wrong = live.states(batch(live, 1, 3, 5), live.targets).last
    assert not torch.allclose(stored, wrong, atol=1e-2)


@pytest.mark.parametrize("k", [0, 5])
def test_a_capped_model_is_capped_from_the_cache_too(folder: Path, tmp_path: Path, k: int) -> None:
    """A final softcap and scale: the same divergences live and cached, which without them would be others."""
    live = teacher(folder, torch.float32)
    family = replace(live.backbone.family, softcap="final_logit_softcapping", logit_scale="logit_scale")
    live.backbone.family = family
    live.backbone.config.get_text_config().final_logit_softcapping = 2.0
    live.backbone.config.get_text_config().logit_scale = 0.7
    rule = live.backbone.logit_rule
    assert rule == LogitRule(scale=0.7, softcap=2.0)
    cached = built(live, tmp_path / "cache", k=k)
    one, vocabulary = batch(live, 2), live.backbone.tokenizer_length
    said, stored = live.states(one, (3,)), cached.states(one, (3,))
    assert said.rule == rule
    x, head = torch.randn(one.num_tokens, 32, generator=torch.manual_seed(0)), torch.randn(400, 32)
    if k:
        assert stored.top_k is not None
        known = top_k_of(said.last, live.head, vocabulary=vocabulary, k=k, rule=rule)
        assert torch.equal(stored.top_k.last.tail, known.tail)
        assert torch.equal(stored.top_k.last.log_probs, known.log_probs.half())
        plain = top_k_of(said.last, live.head, vocabulary=vocabulary, k=k)
        assert not torch.allclose(plain.tail, known.tail)
        return
    ours, theirs, plain = (
        divergence(x, head, states.last, live.head, vocabulary=vocabulary, rule_t=each)
        for states, each in ((said, said.rule), (stored, stored.rule), (said, LogitRule()))
    )
    assert torch.equal(ours, theirs)
    assert not torch.allclose(ours, plain)


def test_top_k_is_that_of_the_live_states(folder: Path, tmp_path: Path) -> None:
    live = teacher(folder, torch.float32)
    cached = built(live, tmp_path / "cache", k=4)
    one = batch(live, 2)
    known, said = cached.states(one, (3,)).top_k, live.states(one, live.targets).layers[3]
    assert known is not None
    assert set(known.layers) == {3}
    stored = known.layers[3]
    whole = top_k_of(said, live.head, vocabulary=live.backbone.tokenizer_length, k=4)
    assert torch.equal(stored.indices, whole.indices)
    assert torch.equal(stored.log_probs, whole.log_probs.half())
    assert torch.equal(stored.tail, whole.tail)
    with pytest.raises(ValueError, match="has no head"):
        _ = cached.head


def test_a_record_that_is_not_there_is_named(folder: Path, tmp_path: Path) -> None:
    live = teacher(folder, torch.float32)
    cached = built(live, tmp_path / "cache")
    encoder = ChatEncoder(live.backbone.processor)
    other = encoder.encode(PatternsSource("validation", turns=3).read(0))
    with pytest.raises(
        CheckpointError, match=f"record '{other.record}' is not in .*: none there has its tokens"
    ):
        cached.states(collate([other], 0, digests=True), live.targets)
    known = encoder.encode(PatternsSource("train", turns=3).read(1))
    brighter = replace(known, tensors={**known.tensors, "pixel_values": known.tensors["pixel_values"] + 1})
    with pytest.raises(CheckpointError, match="with its tokens is, but with other pixels"):
        cached.states(collate([brighter], 0, digests=True), live.targets)
    with pytest.raises(ValueError, match="needs batches with digests"):
        cached.states(collate([known], 0), live.targets)


def test_a_digest_knows_tokens_mask_and_pixels(folder: Path) -> None:
    encoder = ChatEncoder(load_backbone(str(folder)).processor)
    record = encoder.encode(PatternsSource("train", turns=3).read(0))
    flipped = record.trained.clone()
    flipped[-1] = ~flipped[-1]
    ids = record.input_ids.clone()
    ids[-1] += 1
    pixels = {name: value.clone() for name, value in record.tensors.items()}
    pixels["pixel_values"][-1, -1] += 1e-3
    others = [
        replace(record, trained=flipped),
        replace(record, input_ids=ids),
        replace(record, tensors=pixels),
    ]
    digests = {record_digest(each) for each in (record, *others)}
    assert len(digests) == 4
    assert record_digest(replace(record, record="another name")) == record_digest(record)
    assert record_digest(others[2])[:16] == record_digest(record)[:16]  # the text's half


def test_a_difference_is_told_in_words(folder: Path) -> None:
    live = teacher(folder, torch.float32)
    one = identity(live, "fp32", 0)
    assert difference(one, identity(live, "fp32", 0)) is None
    assert difference(one, replace(one, max_length=9)) == "data.max_length: 512 there, 9 here"
    assert one.digest != replace(one, max_length=9).digest
