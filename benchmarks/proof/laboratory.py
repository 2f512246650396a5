"""Runs of the comparison, one after another in one process, through the engine's own stages and training loop.

What runs share is made once: the models, the verbalizers of an architecture, the batches of a seed, and what the
frozen large model says to them. So a run costs little more than its student's optimizer steps; what the shared parts
cost is measured where they are made and told with every run that uses them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.proof.held_out import HeldOut, Measure
from benchmarks.proof.noise import noisy_stream
from benchmarks.proof.settings import Run, Settings, Split
from benchmarks.proof.shared import KeptTeacher, Replay, Supply
from vlsi_cli.config.run import (
    DataConfig,
    DistillConfig,
    InteractionConfig,
    LayersConfig,
    LossWeights,
    MatchingConfig,
    ModelConfig,
    OptimizerConfig,
    PatternsSource,
    ReinforcementConfig,
    VerbalizerConfig,
)
from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.batch import Batch
from vlsi_cli.engine.data.stream import RecordStream
from vlsi_cli.engine.data.template import ChatEncoder, Encoded
from vlsi_cli.engine.runs import models
from vlsi_cli.engine.runs.data import training_stream
from vlsi_cli.engine.runs.stages import interaction_stage, reinforcement_stage
from vlsi_cli.engine.stages import VerbalizationStage
from vlsi_cli.engine.teachers import LiveTeacher
from vlsi_cli.engine.training import Progress, Stage, train_stage
from vlsi_cli.engine.verbalizing import Verbalizers

#: Seed of the verbalizers' start and order, and of their puzzles where these have no end: no run has it.
VERBALIZER_SEED = 10_000
#: Teachers kept, with all that they said: some 100 MB each. The oldest goes first.
KEPT_TEACHERS = 12
CPU = torch.device("cpu")
#: Is shown a number of steps, the large model, and the small one's verbalizers.
Watch = Callable[[int, KeptTeacher | None, Verbalizers | None], None]


@dataclass(frozen=True)
class Trained:
    """Verbalizers after step 1: processor seconds of their training, and each layer's loss at its last step."""

    verbalizers: Verbalizers
    seconds: float
    losses: dict[str, float]


class Laboratory:
    """Everything that the runs of one process share.

    Args:
        settings: the fixed half of the comparison.
    """

    #: What the models compute in.
    dtype = torch.float32

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        torch.set_num_threads(1)
        layers = LayersConfig(start=settings.start, stride=settings.stride)
        self._models = {
            "small": ModelConfig(id=settings.small, targets=layers),
            "large": ModelConfig(id=settings.large, targets=layers),
        }
        config = DistillConfig(
            teacher=self._models["large"],
            student=self._models["small"],
            data=self._data("train"),
            precision="bf16" if self.dtype is torch.bfloat16 else "fp32",
        )
        self.small = models.load_model(config.student, config, self.dtype, CPU, trained=True)
        template = self.small.processor.chat_template
        self.large = models.load_model(
            self._models["large"], config, self.dtype, CPU, trained=False, chat_template=template
        )
        self._start = {name: value.clone() for name, value in self.small.model.state_dict().items()}
        self._encoder = ChatEncoder(self.small.processor, max_length=settings.max_length)
        self.held_out = HeldOut(settings, self._encoder, self._data)
        self._verbalizers: dict[tuple[str, str, int], Trained] = {}
        self._supplies: dict[int, Supply] = {}
        self._teachers: dict[tuple[int, str], KeptTeacher] = {}

    def sides(self) -> Iterator[tuple[str, Backbone]]:
        """The two models as they are before any run."""
        self.small.model.load_state_dict(self._start)
        yield from (("small", self.small), ("large", self.large))

    # ---------------------------------------------------------------- runs

    def run(self, run: Run, watch: Watch = lambda step, teacher, own: None) -> dict[str, Any]:
        """Train the student from its start as the run says, and measure it once.

        Args:
            run: what is done.
            watch: is shown the interaction step: before it, with step 0, and after each optimizer step.

        Returns:
            ``accuracy``, ``loss``, ``by_kind``, ``n``, ``seconds`` of the processor (interaction, large,
            reinforcement, measurement) and, where there are some, ``verbalizers``: their seconds and losses.
        """
        self.small.model.load_state_dict(self._start)
        supply = self.batches(run.seed)
        done = run.interaction_steps if run.interacts else 0
        supply.prepare(done + run.reinforcement_steps)
        used = self._trained_verbalizers(run)
        seconds: dict[str, float] = {}
        if run.interacts:
            seconds |= self._interact(run, supply, watch)
        if run.reinforcement_steps:
            stage = reinforcement_stage(ReinforcementConfig(), self.small, seed=run.seed)
            started = time.process_time()
            rate = run.rate if run.reinforcement_rate is None else run.reinforcement_rate
            self._train(stage, Replay(supply, done), run.reinforcement_steps, rate, run.seed)
            seconds["reinforcement"] = time.process_time() - started
        started = time.process_time()
        score = self.measure(self.large if run.model == "large" else self.small, run.split)
        seconds["measurement"] = time.process_time() - started
        return {
            **score.to_json(),
            "n": self.settings.asked,
            "seconds": {name: round(value, 1) for name, value in seconds.items()},
            "verbalizers": {
                side: {"seconds": round(trained.seconds, 1), "losses": trained.losses}
                for side, trained in used.items()
            },
        }

    def _interact(self, run: Run, supply: Supply, watch: Watch) -> dict[str, float]:
        teacher, own, spent = None, None, {}
        if run.verbalizes:
            own = self._copy(self._trained_verbalizers(run)["small"].verbalizers, run.architecture)
        if {run.intermediate, run.last} & {"kld", "l2"}:
            teacher = self._teacher(run)
            teacher.seconds = 0.0
        settings = InteractionConfig(
            intermediate=run.intermediate,
            last=run.last,
            features=run.features,
            weights=LossWeights(intermediate=run.intermediate_weight),
            matching=MatchingConfig(
                strategy=run.strategy,
                k=run.k,
                search_range=run.search_range,
                order_preservation=run.order_preservation,
                adaptive_temperature=run.adaptive_temperature,
            ),
        )
        targets = models.target_layers(self._models["small"], self.small)
        stage = interaction_stage(settings, self.small, teacher, own, targets=targets, seed=run.seed)
        watch(0, teacher, own)
        computed = teacher.computed if teacher is not None else 0.0
        started = time.process_time()
        self._train(
            stage,
            Replay(supply, 0),
            run.interaction_steps,
            run.rate,
            run.seed,
            lambda progress: watch(progress.step, teacher, own),
        )
        elapsed = time.process_time() - started
        if teacher is not None:
            elapsed -= teacher.computed - computed
            spent["large"] = teacher.seconds
        self.small.freeze()
        return spent | {"interaction": elapsed}

    def _train(
        self,
        stage: Stage,
        stream: Any,
        steps: int,
        rate: float,
        seed: int,
        tell: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        fixed = self.settings
        accelerator = models.new_accelerator(CPU, self.dtype)
        optimizer = OptimizerConfig(
            learning_rate=rate,
            final_learning_rate=rate * fixed.final_fraction,
            warmup_steps=min(fixed.warmup_steps, steps - 1),
            betas=fixed.betas,
            max_grad_norm=fixed.max_grad_norm,
        )
        try:
            train_stage(
                stage,
                stream,
                accelerator,
                key=stage.name,
                steps=steps,
                batch_size=fixed.batch_size,
                accumulation=1,
                learning_rate=optimizer.learning_rate,
                final_learning_rate=optimizer.final_learning_rate,
                warmup_steps=optimizer.warmup_steps,
                betas=optimizer.betas,
                weight_decay=optimizer.weight_decay,
                max_grad_norm=optimizer.max_grad_norm,
                seed=seed,
                on_step=tell,
            )
        finally:
            accelerator.free_memory()

    # ---------------------------------------------------------------- shared parts

    def verbalizers(self, side: str, architecture: str, seed: int) -> Trained:
        """The trained set of a side for the runs of a training seed.

        It learns from nothing that the student may not see: where the student's puzzles are a finite set, from that
        set; where they have no end, from others of the same kinds, once for all seeds.
        """
        puzzles = VERBALIZER_SEED if self.settings.records is None else seed
        found = self._verbalizers.get((side, architecture, puzzles))
        if found is None:
            if side == "small":
                self.small.model.load_state_dict(self._start)
            backbone = self.large if side == "large" else self.small
            fresh = self._new_verbalizers(side, architecture)
            stage = VerbalizationStage(backbone, fresh)
            data = self._data("train", puzzles)
            stream = self._stream(data, VERBALIZER_SEED)
            losses: dict[str, float] = {}
            fixed = self.settings
            started = time.process_time()
            self._train(
                stage,
                stream,
                fixed.verbalization_steps,
                fixed.verbalization_rate,
                VERBALIZER_SEED,
                lambda progress: losses.update(progress.terms),
            )
            spent = time.process_time() - started
            found = Trained(fresh, spent, {layer: round(loss, 3) for layer, loss in losses.items()})
            self._verbalizers[side, architecture, puzzles] = found
        return found

    def _trained_verbalizers(self, run: Run) -> dict[str, Trained]:
        """The sets that a run uses, by side; the large model's only where its words are compared."""
        sides = ("small", "large") if run.intermediate != "ce" else ("small",)
        return {side: self.verbalizers(side, run.architecture, run.seed) for side in sides if run.verbalizes}

    def _new_verbalizers(self, side: str, architecture: str) -> Verbalizers:
        backbone = self.large if side == "large" else self.small
        make = VerbalizerConfig.model_validate({"architecture": architecture})
        targets = models.target_layers(self._models[side], backbone)
        return models.new_verbalizers(backbone, targets, make, VERBALIZER_SEED)

    def _copy(self, trained: Verbalizers, architecture: str) -> Verbalizers:
        """The interaction step trains the small set further: every run starts from its own copy."""
        fresh = self._new_verbalizers("small", architecture)
        fresh.load_state_dict(trained.state_dict())
        return fresh

    def _teacher(self, run: Run) -> KeptTeacher:
        """The large model with verbalizers of an architecture, or with plain features, for the batches of a seed."""
        trained = self._trained_verbalizers(run).get("large")
        seed, words = run.seed, "features" if trained is None else run.architecture
        if (seed, words) not in self._teachers:
            said = None if trained is None else trained.verbalizers
            targets = models.target_layers(self._models["large"], self.large)
            while len(self._teachers) >= KEPT_TEACHERS:
                del self._teachers[next(iter(self._teachers))]
            self._teachers[seed, words] = KeptTeacher(LiveTeacher(self.large, said, targets))
        return self._teachers[seed, words]

    def batches(self, seed: int) -> Supply:
        """The supply of a seed: what every run of it reads."""
        if seed not in self._supplies:
            stream = self._stream(self._data("train", seed), seed)
            size = self.settings.batch_size
            self._supplies[seed] = Supply(iter(lambda: stream.next_batch(size), None))
        return self._supplies[seed]

    def _stream(self, data: DataConfig, seed: int) -> RecordStream[Encoded, Batch]:
        """Training puzzles as all learn from them, students and verbalizers: with their wrong answers."""
        if self.settings.wrong:
            return noisy_stream(data, self._encoder, self.settings.wrong, seed=seed)
        return training_stream(data, self._encoder, seed=seed)

    def _data(self, split: str, seed: int = 0, **changes: Any) -> DataConfig:
        fixed = self.settings
        values = {"size": fixed.records, "questions": fixed.kinds, "turns": fixed.turns} | changes
        source = PatternsSource.model_validate({"split": split, "seed": seed, **values})
        return DataConfig(sources=(source,), max_length=fixed.max_length)

    def measure(self, backbone: Backbone, split: Split) -> Measure:
        """Greedy answers to the held-out puzzles of a split, and the loss on them."""
        return self.held_out.measure(backbone, split)
