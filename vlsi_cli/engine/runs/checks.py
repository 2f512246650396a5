"""What a run is refused for before it has measured or trained anything, and so before hours of work."""

from __future__ import annotations

from vlsi_cli.config.data import HubSource
from vlsi_cli.config.run import StageConfig
from vlsi_cli.engine import processes
from vlsi_cli.engine.backbones.compiled import require_compiler
from vlsi_cli.engine.places import require_space
from vlsi_cli.engine.runs import models
from vlsi_cli.engine.runs.data import encoder_for, training_stream
from vlsi_cli.engine.runs.results import RunResults
from vlsi_cli.engine.runs.stages import cut_step, optimizer_steps


class RunChecks(RunResults):
    """The parts of one run, and whether they are enough for its stages."""

    def check_compiler(self) -> None:
        """What is to be compiled must be possible to compile.

        Raises:
            ConfigError: it is not.
        """
        if self.config.compile and self._stages_left():
            require_compiler(self.device)

    def check_space(self) -> None:
        """Checkpoints, verbalizers, the layers after step 2 and the student must fit on the disk.

        Raises:
            OutputError: they do not.
        """
        config, sets = self.config, []
        for side, needed in (("large", config.large_verbalization), ("small", config.verbalization)):
            if needed is not None:
                backbone, model = self._side(side)
                targets = models.target_layers(model, backbone)
                made = models.new_verbalizers(backbone, targets, config.verbalizer, 0, device="meta")
                sets.append(sum(parameter.numel() for parameter in made.parameters()))
        full = models.trains_weights(config)
        needed_bytes = models.disk_space(self.student, sets, full=full, keep=config.keep_checkpoints)
        what = "checkpoints, verbalizers and the small model"
        processes.on_first(
            lambda: require_space(self.folder.path, needed_bytes - self.folder.replaced_bytes, what)
        )

    def check_data(self) -> None:
        """The data must be there and one record of them usable; epochs and steps must be countable and fit.

        Raises:
            DataError: a source is not there or empty, or no record can be used.
            ConfigError: epochs of data without an end, or a step that these processes cannot share.
        """
        config, begun, left = self.config, self.folder.state.processes, self._stages_left()
        if not left:
            return
        # a streamed data set first fills a buffer over the network, which the stages do soon enough
        streamed = any(isinstance(each, HubSource) and each.streaming for each in config.data.sources)
        with processes.together():
            stream = training_stream(
                config.data.model_copy(update={"workers": 0}),
                encoder_for(self.student.processor, config.data),
                seed=models.derived_seed(config.seed, "data of verbalization"),
            )
            for name, settings in left.items():
                optimizer_steps(settings, stream.records_per_epoch, name, begun)
                cut_step(settings, begun, processes.size())
            if not streamed:
                next(iter(stream.one_pass(1)))

    def _stages_left(self) -> dict[str, StageConfig]:
        """Settings of the stages that are not complete, by name."""
        config = self.config
        found: dict[str, StageConfig | None] = {
            "verbalization-large": config.large_verbalization,
            "verbalization-small": config.verbalization,
            "interaction": config.interaction,
            "reinforcement": config.reinforcement,
        }
        return {
            key.partition("-")[0]: settings
            for key, settings in found.items()
            if settings is not None and not self._complete(key)
        }
