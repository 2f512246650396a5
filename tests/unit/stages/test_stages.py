"""The stages: what trains, what stays bit for bit, and gradients that do not know how records were batched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests import pairs
from vlsi_cli.config.run import (
    InteractionConfig,
    LayerLoss,
    LoraConfig,
    LossWeights,
    MatchingConfig,
    ReinforcementConfig,
)
from vlsi_cli.engine.losses import divergence
from vlsi_cli.engine.runs.stages import interaction_stage, reinforcement_stage
from vlsi_cli.engine.stages import VerbalizationStage
from vlsi_cli.engine.stages.interaction import InteractionStage
from vlsi_cli.engine.teachers import LiveTeacher
from vlsi_cli.engine.training.optimizer import make_optimizer
from vlsi_cli.engine.training.parallel import Prepared
from vlsi_cli.engine.training.stage import Stage

UNIFORM = MatchingConfig(strategy="uniform")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return pairs.tiny_pair(tmp_path_factory.mktemp("pair"))


def interaction(folders: tuple[Path, Path], settings: InteractionConfig) -> InteractionStage:
    large, small = (pairs.load(folder) for folder in folders)
    said = None if settings.features else pairs.verbalizers(large, pairs.TARGETS_LARGE)
    own = pairs.verbalizers(small, pairs.TARGETS_SMALL, seed=1) if settings.verbalizes else None
    teacher = LiveTeacher(large, said, pairs.TARGETS_LARGE)
    return interaction_stage(settings, small, teacher, own, targets=pairs.TARGETS_SMALL, seed=3)


def stages(folders: tuple[Path, Path]) -> dict[str, Callable[[], Stage]]:
    def verbalization() -> Stage:
        small = pairs.load(folders[1])
        return VerbalizationStage(small, pairs.verbalizers(small, pairs.TARGETS_SMALL))

    return {
        "verbalization": verbalization,
        "sft": lambda: reinforcement_stage(ReinforcementConfig(), pairs.load(folders[1]), seed=0),
        "last layer": lambda: interaction(folders, InteractionConfig(intermediate="none")),
        "interaction": lambda: interaction(folders, InteractionConfig(matching=UNIFORM)),
        "features": lambda: interaction(
            folders, InteractionConfig(features=True, intermediate="l2", last="l2", matching=UNIFORM)
        ),
    }


def gradient(stage: Stage, folder: Path, size: int) -> torch.Tensor:
    """The gradient of one step over the same eight records, in micro-batches of ``size``."""
    backbone = pairs.load(folder)
    work = pairs.batches(backbone, pairs.encoded(backbone, 8), size)
    accelerator = pairs.accelerator()
    prepared = Prepared(accelerator.prepare(stage), None, accelerator)
    stage.set_train_mode()
    for _, parameter in stage.trained():
        parameter.grad = None
    prepared.accumulate(work, sum(batch.num_tokens for batch in work))
    return torch.cat(
        [p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for _, p in stage.trained()]
    )


@pytest.mark.parametrize("name", ["verbalization", "sft", "last layer", "interaction", "features"])
def test_the_gradient_does_not_know_how_records_were_batched(folders: tuple[Path, Path], name: str) -> None:
    stage = stages(folders)[name]()
    whole = gradient(stage, folders[1], 8)
    assert whole.norm() > 0
    for size in (4, 2, 1):
        parts = gradient(stage, folders[1], size)
        assert (parts - whole).norm() <= 1e-6 * whole.norm()


def test_a_mean_of_means_would_be_another_gradient(folders: tuple[Path, Path]) -> None:
    """The twin that must fail: dividing by each micro-batch's own count weights short answers more."""
    stage = stages(folders)["sft"]()
    backbone = pairs.load(folders[1])
    whole = gradient(stage, folders[1], 8)
    accelerator = pairs.accelerator()
    for _, parameter in stage.trained():
        parameter.grad = None
    work = pairs.batches(backbone, pairs.encoded(backbone, 8), 1)
    for batch in work:
        Prepared(stage, None, accelerator).accumulate([batch], batch.num_tokens * len(work))
    wrong = torch.cat(
        [p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for _, p in stage.trained()]
    )
    assert (wrong - whole).norm() > 1e-3 * whole.norm()


def step(stage: Stage, folder: Path) -> None:
    backbone = pairs.load(folder)
    optimizer = make_optimizer(stage.trained())
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    stage.set_train_mode()
    for batch in pairs.batches(backbone, pairs.encoded(backbone, 4), 4):
        stage(batch).loss.backward()
    optimizer.step()


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_verbalization_changes_the_verbalizers_alone(folders: tuple[Path, Path]) -> None:
    small = pairs.load(folders[1])
    made = pairs.verbalizers(small, pairs.TARGETS_SMALL)
    before, before_made = pairs.weights(small.model), pairs.weights(made)
    step(VerbalizationStage(small, made), folders[1])
    assert changed(before, pairs.weights(small.model)) == set()
    assert changed(before_made, pairs.weights(made)) == set(before_made)


def test_interaction_changes_layers_and_verbalizers_alone(folders: tuple[Path, Path]) -> None:
    stage = interaction(folders, InteractionConfig())
    teacher, small, own = stage._teacher[0], stage._backbone[0], stage.verbalizers
    assert isinstance(teacher, LiveTeacher)
    assert teacher.verbalizers is not None
    assert own is not None
    large_before, said_before = pairs.weights(teacher.backbone.model), pairs.weights(teacher.verbalizers)
    before, own_before = pairs.weights(small.model), pairs.weights(own)
    step(stage, folders[1])
    assert changed(large_before, pairs.weights(teacher.backbone.model)) == set()
    assert changed(said_before, pairs.weights(teacher.verbalizers)) == set()
    touched = changed(before, pairs.weights(small.model))
    assert touched
    assert all(".layers." in name for name in touched)
    # Biases of keys move no attention; every matrix of every layer must have moved.
    assert {n for n in before if ".layers." in n and n.endswith("proj.weight")} <= touched
    assert changed(own_before, pairs.weights(own)) == set(own_before)


@pytest.mark.parametrize("vision", [False, True])
def test_reinforcement_leaves_the_vision_tower_unless_asked(folders: tuple[Path, Path], vision: bool) -> None:
    small = pairs.load(folders[1])
    before = pairs.weights(small.model)
    step(reinforcement_stage(ReinforcementConfig(vision=vision), small, seed=0), folders[1])
    touched = changed(before, pairs.weights(small.model))
    seen = {name for name in touched if ".visual." in name}
    assert bool(seen) is vision
    language = {name for name in before if ".visual." not in name}
    assert {
        n for n in language if n.endswith(("proj.weight", "norm.weight", "embed_tokens.weight"))
    } <= touched


def test_adapters_train_alone(folders: tuple[Path, Path]) -> None:
    small = pairs.load(folders[1])
    settings = ReinforcementConfig(train="lora", lora=LoraConfig(rank=4, alpha=4))
    stage = reinforcement_stage(settings, small, seed=0)
    before = pairs.weights(small.model)
    step(stage, folders[1])
    touched = changed(before, pairs.weights(small.model))
    assert touched
    assert all(".lora_" in name for name in touched)


def test_interaction_adds_up_the_pairs_that_it_says_it_matched(folders: tuple[Path, Path]) -> None:
    stage = interaction(folders, InteractionConfig())
    small, teacher = stage._backbone[0], stage._teacher[0]
    assert teacher is not None
    batch = pairs.batches(small, pairs.encoded(small, 4), 4)[0]
    with torch.no_grad():
        said = teacher.states(batch, teacher.targets)
        output = stage(batch)
        assert stage.verbalizers is not None
        with small.tap(pairs.TARGETS_SMALL, rows=batch.rows, cols=batch.cols) as tapped:
            last = small.forward_base(batch.inputs)[batch.rows, batch.cols]
        expected = {"last": (last, said.last)} | {
            str(s): (stage.verbalizers(s, tapped[s]), said.layers[output.matched[s][0]])
            for s in pairs.TARGETS_SMALL
        }
        for name, (x_s, x_t) in expected.items():
            pair = divergence(
                x_s, small.head.weight, x_t, teacher.head, vocabulary=small.tokenizer_length
            ).sum()
            torch.testing.assert_close(output.terms[name], pair, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.loss, sum(output.terms.values()), rtol=1e-6, atol=1e-6)
    chosen = [output.matched[s][0] for s in pairs.TARGETS_SMALL]
    assert chosen == sorted(set(chosen))


def dense(kind: str, z_s: torch.Tensor, z_t: torch.Tensor, temperature: float) -> torch.Tensor:
    """``[R]`` a loss as a textbook has it, from whole logits ``[R, V]``; ``jsd`` with a share of 0.3."""
    log_s, log_t = ((z / temperature).log_softmax(-1) for z in (z_s, z_t))
    p_s, p_t = log_s.exp(), log_t.exp()
    if kind == "l2":
        return (p_s - p_t).square().sum(-1) * temperature**2
    log_m = (0.7 * p_s + 0.3 * p_t).log()
    value = {
        "kld": p_t * (log_t - log_s),
        "reverse-kld": p_s * (log_s - log_t),
        "jsd": 0.3 * p_t * (log_t - log_m) + 0.7 * p_s * (log_s - log_m),
    }[kind]
    return value.sum(-1) * temperature**2


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("kind", ["kld", "reverse-kld", "jsd", "l2"])
def test_every_loss_is_its_formula_times_its_weight(
    folders: tuple[Path, Path], kind: LayerLoss, temperature: float
) -> None:
    weights = LossWeights(intermediate=0.25, last=2.0, answers=0.5)
    settings = InteractionConfig(
        intermediate=kind, last=kind, temperature=temperature, jsd_beta=0.3, weights=weights, matching=UNIFORM
    )
    stage = interaction(folders, settings)
    small, teacher = stage._backbone[0], stage._teacher[0]
    assert teacher is not None
    assert stage.verbalizers is not None
    batch = pairs.batches(small, pairs.encoded(small, 4), 4)[0]
    output = stage(batch)
    said = teacher.states(batch, teacher.targets)
    with small.tap(pairs.TARGETS_SMALL, rows=batch.rows, cols=batch.cols) as tapped:
        last = small.forward_base(batch.inputs)[batch.rows, batch.cols]
    words = small.tokenizer_length
    theirs, ours = teacher.head[:words].float(), small.head.weight[:words]
    terms = {
        str(s): 0.25
        * dense(
            kind,
            stage.verbalizers(s, tapped[s]) @ ours.T,
            said.layers[output.matched[s][0]].float() @ theirs.T,
            temperature,
        ).sum()
        for s in pairs.TARGETS_SMALL
    }
    terms["last"] = 2.0 * dense(kind, last @ ours.T, said.last.float() @ theirs.T, temperature).sum()
    terms["answers"] = 0.5 * cross_entropy(last @ ours.T, batch.targets, reduction="sum")
    assert set(output.terms) == set(terms)
    for name, value in terms.items():
        torch.testing.assert_close(output.terms[name], value.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.loss, torch.stack(list(terms.values())).sum(), rtol=1e-4, atol=1e-5)
    trained = [parameter for _, parameter in stage.trained()]
    for got, want in zip(
        torch.autograd.grad(output.loss, trained, allow_unused=True),
        torch.autograd.grad(torch.stack(list(terms.values())).sum(), trained, allow_unused=True),
        strict=True,
    ):
        assert got is not None
        assert want is not None
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5)


def test_layers_are_matched_by_the_divergences_at_the_temperature_of_the_losses(
    folders: tuple[Path, Path],
) -> None:
    """What bottom-k finds nearest is nearest by the same numbers that the loss is made of."""
    settings = InteractionConfig(temperature=4.0, matching=MatchingConfig(strategy="bottom-k"))
    stage = interaction(folders, settings)
    small, teacher = stage._backbone[0], stage._teacher[0]
    assert teacher is not None
    assert stage.verbalizers is not None
    batch = pairs.batches(small, pairs.encoded(small, 4), 4)[0]
    with torch.no_grad():
        output, said = stage(batch), teacher.states(batch, teacher.targets)
        with small.tap(pairs.TARGETS_SMALL, rows=batch.rows, cols=batch.cols) as tapped:
            small.forward_base(batch.inputs)
        for s in pairs.TARGETS_SMALL:
            each = [
                divergence(
                    stage.verbalizers(s, tapped[s]),
                    small.head.weight,
                    said.layers[t],
                    teacher.head,
                    vocabulary=small.tokenizer_length,
                    temperature=4.0,
                ).sum()
                for t in pairs.TARGETS_LARGE
            ]
            torch.testing.assert_close(output.terms[str(s)], 16 * min(each), rtol=1e-4, atol=1e-5)


def test_a_model_that_is_its_own_teacher_has_no_last_layer_loss(folders: tuple[Path, Path]) -> None:
    small, same = pairs.load(folders[1]), pairs.load(folders[1])
    teacher = LiveTeacher(same, None, pairs.TARGETS_SMALL)
    settings = InteractionConfig(intermediate="none")
    stage = interaction_stage(settings, small, teacher, None, targets=pairs.TARGETS_SMALL, seed=0)
    output = stage(pairs.batches(small, pairs.encoded(small, 2), 2)[0])
    assert abs(float(output.loss.detach())) < 1e-4


def test_ce_needs_no_teacher_and_matches_nothing(folders: tuple[Path, Path]) -> None:
    small = pairs.load(folders[1])
    own = pairs.verbalizers(small, pairs.TARGETS_SMALL)
    settings = InteractionConfig(intermediate="ce", last="ce")
    stage = interaction_stage(settings, small, None, own, targets=pairs.TARGETS_SMALL, seed=0)
    output = stage(pairs.batches(small, pairs.encoded(small, 2), 2)[0])
    assert output.matched == {}
    assert set(output.terms) == {"1", "2", "3", "last"}
    output.loss.backward()


def test_the_same_seed_draws_the_same_matches(folders: tuple[Path, Path]) -> None:
    drawn = []
    for _ in range(2):
        stage = interaction(folders, InteractionConfig())
        small = stage._backbone[0]
        batch = pairs.batches(small, pairs.encoded(small, 2), 2)[0]
        drawn.append([stage(batch).matched for _ in range(5)])
    assert drawn[0] == drawn[1]
    assert len({str(each) for each in drawn[0]}) > 1  # and it does draw
