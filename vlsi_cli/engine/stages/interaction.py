"""Step 2: the small model's target layers learn to say what their matched large layers say."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal

import torch
from torch import Tensor, nn

from vlsi_cli.engine import processes
from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.batch import Batch
from vlsi_cli.engine.gauges import DeviceClock
from vlsi_cli.engine.losses import (
    AllPairs,
    DivergenceKind,
    FeatureProjectors,
    cross_entropy,
    divergence,
    feature_l2,
    feature_matrix,
    top_k_divergence,
    top_k_matrix,
)
from vlsi_cli.engine.matching import Match, reachable
from vlsi_cli.engine.teachers.teacher import Teacher, TeacherStates
from vlsi_cli.engine.training.stage import Stage, StageOutput, add_terms
from vlsi_cli.engine.verbalizing.reading import Taps, read_layers, verbalize
from vlsi_cli.engine.verbalizing.verbalizer import Verbalizers
from vlsi_cli.errors import TrainingError

LayerLoss = Literal["kld", "reverse-kld", "jsd", "l2", "ce", "none"]
#: What the losses that compare what two models say are called in :func:`vlsi_cli.engine.losses.divergence`.
KINDS: dict[LayerLoss, DivergenceKind] = {
    "kld": "forward_kl",
    "reverse-kld": "reverse_kl",
    "jsd": "jsd",
    "l2": "l2",
}
#: From a divergence matrix to the matches; draws come from the stage's generator.
Matcher = Callable[[Tensor, torch.Generator], list[Match]]


class InteractionStage(Stage):
    """Losses between matched target layers, and between the last layers (arXiv 2412.01822, section 3.3).

    The paper's: KL(large || small) on both, matched by a multinomial draw in a moving window, and no
    autoregressive loss [P]. For each micro-batch one pass gives the divergence of every reachable pair;
    layers are matched on its mean over the response tokens; only the matched pairs get a gradient, from that
    same pass or from one more projection (:class:`vlsi_cli.engine.losses.AllPairs`).

    The small model's decoder layers (or adapters on them) and its verb-FFNs train. Its head, its final norm,
    its embeddings and its vision tower are frozen; of these the paper names the head [P], the others are
    method choices [D]: they belong to how the model reads its input and what all verbalizers feed.

    Args:
        backbone: the small model.
        teacher: the large one; None only when no term needs it (CE alone).
        verbalizers: the small model's set; None when layers are compared by features, or not at all.
        targets: the small model's target layers, ascending; the ablation ``intermediate="none"`` uses none.
        parts: what trains of the small model: ``("layers",)`` or ``("adapters",)``.
        intermediate: loss between matched layers: ``kld``, ``reverse-kld``, ``jsd`` or ``l2`` between
            distributions (``l2`` between features when ``features``), ``ce`` to the ground truth without any
            matching, or ``none``. Layers are matched on their forward KL, whatever the loss.
        last: the same for the last layer.
        temperature: of both softmaxes wherever the two models are compared, in the matching too; the values are
            multiplied by its square, which keeps gradients near their size (arXiv 1503.02531, section 2).
        jsd_beta: the large model's share of the mixture in ``jsd``.
        weights: of the intermediate losses, of the last one, and of the cross-entropy on the answers at the last
            layer. Terms are what stands in the loss, weights included.
        features: compare final-normed states by L2 through learned projectors, without words (Table 4d').
        matcher: chooses large layers from a matrix of mean divergences.
        needed: ``[n_small, n_large]`` bool: cells of the matrix that the matcher can look at.
        vocabulary: the tokenizer's real length, the same on both sides.
        seed: of the draws and of the projectors.
    """

    name = "interaction"

    def __init__(
        self,
        backbone: Backbone,
        teacher: Teacher | None,
        verbalizers: Verbalizers | None,
        *,
        targets: Collection[int],
        parts: tuple[str, ...] = ("layers",),
        intermediate: LayerLoss = "kld",
        last: LayerLoss = "kld",
        features: bool = False,
        temperature: float = 1.0,
        jsd_beta: float = 0.5,
        weights: tuple[float, float, float] = (1.0, 1.0, 0.0),
        matcher: Matcher,
        needed: Tensor | None = None,
        vocabulary: int,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self._backbone, self._teacher = (backbone,), (teacher,)
        self._names = [name for name, _ in backbone.set_trainable(parts)]
        self.model = backbone.model
        self.targets = tuple(targets) if intermediate != "none" else ()
        self.verbalizers = verbalizers.requires_grad_(True) if verbalizers is not None else None
        self.intermediate, self.last, self.features = intermediate, last, features
        self._temperature, self._beta, self._weights = temperature, jsd_beta, weights
        self.some_idle = last == "none" and not weights[2]  # the layers behind the last target layer
        self._matcher, self._vocabulary = matcher, vocabulary
        self.generator = torch.Generator().manual_seed(seed)
        self._needed = needed
        self.projectors: FeatureProjectors | None = None
        if teacher is not None:
            self.teacher_clock = DeviceClock(backbone.device)
            if self._needed is None:
                self._needed = reachable(len(self.targets), len(teacher.targets)) if self.targets else None
            if features:
                projected = [*self.targets, *([backbone.num_layers] if last == "l2" else [])]
                self.projectors = FeatureProjectors(
                    projected, backbone.hidden_size, teacher.hidden_size, seed=seed
                ).to(backbone.device)

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """The small model's trained parts, then its verbalizers, then the projectors of features."""
        held = dict(self.model.named_parameters())
        own = [(f"model.{name}", held[name]) for name in self._names]
        for prefix, module in (("verbalizers", self.verbalizers), ("projectors", self.projectors)):
            if module is not None:
                own += [(f"{prefix}.{name}", parameter) for name, parameter in module.named_parameters()]
        return own

    def units(self) -> list[nn.Module]:
        """The decoder layers and every block of the verbalizers."""
        said = self.verbalizers.blocks() if self.verbalizers is not None else []
        return [*self._backbone[0].layers, *said]

    def set_train_mode(self) -> None:
        """Train mode for the small model's trained parts and the verbalizers only."""
        self._backbone[0].train()
        for module in (self.verbalizers, self.projectors):
            if module is not None:
                module.train()

    def forward(self, batch: Batch) -> StageOutput:
        """Terms of every small target layer and of the last one, and which large layers were matched."""
        backbone, teacher = self._backbone[0], self._teacher[0]
        sequences = self.verbalizers is not None and self.verbalizers.needs_sequence
        states = self._ask(teacher, batch) if teacher is not None else None
        taps = read_layers(backbone, batch, self.targets, sequences=sequences)
        small = {layer: self._enter_head(taps, layer, batch) for layer in self.targets}
        terms: dict[str, Tensor] = {}
        losses: list[Tensor] = []
        matched: dict[int, tuple[int, ...]] = {}
        of_targets, of_last, of_answers = self._weights
        if self.intermediate == "ce":
            losses += [add_terms(terms, str(k), self._ce(x, batch), of_targets) for k, x in small.items()]
        elif self.targets:
            assert teacher is not None
            assert states is not None
            matches, pairs = self._match(small, teacher, states, batch.num_tokens)
            for found in matches:
                layer = self.targets[found.small]
                chosen = tuple(teacher.targets[place] for place in found.large)
                if pairs is not None:
                    loss = pairs.loss(found.small, found.large) * self._temperature**2
                else:
                    each = [self._pair(small[layer], teacher, states, k, self.intermediate) for k in chosen]
                    loss = torch.stack(each).mean(0)
                losses.append(add_terms(terms, str(layer), loss, of_targets))
                matched[layer] = chosen
        if self.last == "ce":
            losses.append(add_terms(terms, "last", self._ce(taps.last, batch), of_last))
        elif self.last != "none":
            assert teacher is not None
            assert states is not None
            x = taps.last
            if self.features and self.last == "l2":
                assert self.projectors is not None
                x = self.projectors(backbone.num_layers, x)
            losses.append(add_terms(terms, "last", self._pair(x, teacher, states, None, self.last), of_last))
        if of_answers:
            losses.append(add_terms(terms, "answers", self._ce(taps.last, batch), of_answers))
        return StageOutput(torch.stack(losses).sum(), terms, matched)

    def _ask(self, teacher: Teacher, batch: Batch) -> TeacherStates:
        assert self.teacher_clock is not None
        with self.teacher_clock.running():
            return teacher.states(batch, self._large_layers(teacher))

    def _large_layers(self, teacher: Teacher) -> tuple[int, ...]:
        """Target layers that any match could need: all of them unless no layer is matched."""
        return teacher.targets if self.targets and self.intermediate != "ce" else ()

    def _enter_head(self, taps: Taps, layer: int, batch: Batch) -> Tensor:
        """``[R, ...]``: words-to-be through the verbalizer; or the state in the large model's width."""
        if self.verbalizers is not None:
            return verbalize(self.verbalizers, taps, layer, batch)
        assert self.projectors is not None
        return self.projectors(layer, self._backbone[0].final_norm(taps.layers[layer]))

    def _match(
        self, small: dict[int, Tensor], teacher: Teacher, states: TeacherStates, tokens: int
    ) -> tuple[list[Match], AllPairs | None]:
        """The matches, and all pairs of layers where their KLD is both what is matched on and the loss."""
        shape = (len(self.targets), len(teacher.targets))
        assert self.generator is not None
        if self._needed is not None and not bool(self._needed.any()):
            return self._matcher(torch.zeros(shape), self.generator), None
        if states.top_k is not None:
            matrix = top_k_matrix(
                [x.detach() for x in small.values()],
                self._backbone[0].head.weight,
                [states.top_k.layers[layer] for layer in teacher.targets],
                vocabulary=self._vocabulary,
                mask=self._needed,
                rule_s=self._backbone[0].logit_rule,
            )
            return self._drawn(matrix, tokens), None
        theirs = [states.layers[layer] for layer in teacher.targets]
        pairs = None
        if self.features:
            matrix = feature_matrix([x.detach() for x in small.values()], theirs, mask=self._needed)
        else:
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.intermediate == "kld"):
                pairs = AllPairs(
                    list(small.values()),
                    self._backbone[0].head.weight,
                    theirs,
                    teacher.head,
                    vocabulary=self._vocabulary,
                    mask=self._needed,
                    rule_s=self._backbone[0].logit_rule,
                    rule_t=states.rule,
                    temperature=self._temperature,
                )
            matrix = pairs.matrix * self._temperature**2
        matches = self._drawn(matrix, tokens)
        return matches, pairs if self.intermediate == "kld" else None

    def _drawn(self, matrix: Tensor, tokens: int) -> list[Match]:
        """Matches by the mean over the response tokens of this micro-batch on all processes.

        Their generators are in the same state and the means have the same bits, so that all of them draw the same.
        """
        assert self.generator is not None
        if processes.size() > 1:
            sums = torch.tensor(
                [*matrix.flatten().tolist(), tokens], dtype=torch.float64
            )  # read once, on the host
            *cells, tokens = processes.add_up_alike(sums).tolist()
            matrix = torch.tensor(cells, dtype=torch.float64).reshape(matrix.shape).to(matrix.dtype)
        try:
            return self._matcher(matrix / max(tokens, 1), self.generator)
        except TrainingError as error:
            error.shared = processes.size() > 1
            raise

    def _pair(
        self, x: Tensor, teacher: Teacher, states: TeacherStates, large: int | None, kind: LayerLoss
    ) -> Tensor:
        """``[R]`` loss of one small layer against large layer ``large``, or against the last one."""
        if states.top_k is not None:
            known = states.top_k.last if large is None else states.top_k.layers[large]
            rule = self._backbone[0].logit_rule
            head = self._backbone[0].head.weight
            return top_k_divergence(x, head, known, vocabulary=self._vocabulary, rule_s=rule)
        x_large = states.last if large is None else states.layers[large]
        if self.features and kind == "l2":
            return feature_l2(x, x_large)
        found = divergence(
            x,
            self._backbone[0].head.weight,
            x_large,
            teacher.head,
            vocabulary=self._vocabulary,
            kind=KINDS[kind],
            temperature=self._temperature,
            beta=self._beta,
            rule_s=self._backbone[0].logit_rule,
            rule_t=states.rule,
        )
        return found * self._temperature**2

    def _ce(self, x: Tensor, batch: Batch) -> Tensor:
        return cross_entropy(
            x,
            self._backbone[0].head.weight,
            batch.targets,
            vocabulary=self._vocabulary,
            rule=self._backbone[0].logit_rule,
        )
