"""Sample answers on the way: what each layer of the small model would say to a few held-out questions by now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import torch

from vlsi_cli.config.run import DistillConfig
from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.data.collate import collate_prompts
from vlsi_cli.engine.runs.data import encoder_for, prompt_stream, training_stream
from vlsi_cli.engine.runs.folder import RunFolder
from vlsi_cli.engine.training import Stage
from vlsi_cli.engine.training.checkpoint import random_states, set_random_states
from vlsi_cli.engine.verbalizing import Verbalizers
from vlsi_cli.engine.verbalizing.answers import read_answers
from vlsi_cli.errors import ModelError, first_line, is_out_of_memory
from vlsi_cli.events import Events, LayerSample, Sampled, Warn

FILE = "samples.jsonl"


class LayerSamples:
    """Asks the layers of the small model during a stage, and leaves the training as it was.

    Nothing is drawn in greedy answers; the random states are put back all the same, and so is train mode.

    Args:
        key: the stage's key in the run folder.
        stage: what trains.
        backbone: the small model.
        verbalizers: its set.
        total: steps of the stage.
        dtype: compute dtype.
        asked_to_stop: looked at before each question.

    Raises:
        DataError: no held-out record can be used.
    """

    def __init__(
        self,
        config: DistillConfig,
        folder: RunFolder,
        events: Events,
        *,
        key: str,
        stage: Stage,
        backbone: Backbone,
        verbalizers: Verbalizers,
        total: int,
        dtype: torch.dtype,
        asked_to_stop: Callable[[], bool],
    ) -> None:
        data, watch = config.evaluation.data, config.watch
        assert data is not None  # the configuration sees to it
        self._folder, self._events, self._key, self._stage = folder, events, key, stage
        self._backbone, self._verbalizers, self._dtype = backbone, verbalizers, dtype
        self._every, self._total, self._length = watch.samples_every, total, watch.samples_max_new_tokens
        self._asked = asked_to_stop
        encoder = encoder_for(backbone.processor, data)
        self._pad = encoder.pad_id
        self._prompts = list(prompt_stream(data, encoder, seed=config.seed).one_pass(watch.samples))
        record = next(iter(training_stream(data, encoder, seed=config.seed).one_pass(1)))
        stops = backbone.model.generation_config.eos_token_id
        self._ends = {int(record.input_ids[record.trained][-1])}
        self._ends |= set(stops if isinstance(stops, list) else [stops] if stops is not None else [])

    def after(self, step: int) -> None:
        """Take the answers when they are due: every so many steps, and after the last one."""
        if not self._prompts or (step % self._every and step != self._total):
            return
        device = self._backbone.device
        states = random_states(self._stage.generator, device)
        self._verbalizers.eval()
        try:
            samples = self._answers(device)
        except Exception as error:
            if not (isinstance(error, ModelError) or is_out_of_memory(error)):
                raise
            self._prompts = []
            self._events(Warn(f"no more sample answers in this stage: {first_line(error)}"))
            return
        finally:
            self._stage.set_train_mode()
            set_random_states(states, self._stage.generator, device)
        for sample in samples:
            self._folder.append(FILE, {"stage": self._key, "step": step, **asdict(sample)})
        self._events(Sampled(self._stage.name, step, samples))

    def _answers(self, device: torch.device) -> tuple[LayerSample, ...]:
        backbone, found = self._backbone, []
        with torch.autocast(device.type, dtype=self._dtype, enabled=self._dtype != torch.float32):
            for prompt in self._prompts:
                if self._asked():
                    break
                answers = read_answers(
                    backbone,
                    self._verbalizers,
                    collate_prompts([prompt], self._pad).to(device).inputs,
                    self._verbalizers.targets,
                    ends=self._ends,
                    max_new_tokens=self._length,
                )
                said = {
                    "last" if each.layer == backbone.num_layers else str(each.layer): each.text
                    for each in answers.layers
                }
                found.append(LayerSample(prompt.record, prompt.question, prompt.reference, said))
        return tuple(found)
