"""How each stage trains: its length, its batch, its optimizer, and what is its own."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from vlsi_cli.config.base import Config

LayerLoss = Literal["kld", "reverse-kld", "jsd", "l2", "ce", "none"]
#: Losses that compare what the two models say; the others look at the small one alone, or at nothing.
COMPARING: tuple[LayerLoss, ...] = ("kld", "reverse-kld", "jsd", "l2")


class OptimizerConfig(Config):
    """AdamW; the defaults of rate and schedule are the paper's."""

    learning_rate: float = Field(default=1e-4, gt=0)
    """Rate after warm-up."""
    final_learning_rate: float = Field(default=1e-6, ge=0)
    """Rate that the cosine ends at."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the rate rises from zero."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Course of the rate after warm-up, counted in optimizer steps."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the two moments."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled decay; norms and biases are exempt."""
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """Norm to which gradients are clipped; null: not clipped."""


class LoraConfig(Config):
    """Low-rank adapters on the linear layers of the decoder; merged when the stage ends. Defaults: the
    paper's."""

    rank: int = Field(default=64, ge=1)
    """Rank of the update."""
    alpha: float = Field(default=64.0, gt=0)
    """Scale: the update is multiplied by `alpha / rank`."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before the adapter."""


class StageConfig(Config):
    """Length and batch of a stage. Exactly one of `steps` and `epochs` counts; neither means one epoch."""

    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the data; 0.5 uses half of them."""
    batch_size: int = Field(default=1, ge=1)
    """Records that are in memory at a time (and that one draw of the matching serves)."""
    gradient_accumulation: int = Field(default=16, ge=1)
    """Micro-batches in one optimizer step, of each process."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW and its schedule."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more work."""

    @model_validator(mode="before")
    @classmethod
    def _one_epoch(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("steps") is None and data.get("epochs") is None:
            return {**data, "epochs": 1.0}
        return data

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("`steps` and `epochs` are both given; keep one")
        return self

    @property
    def effective_batch(self) -> int:
        """Records in one optimizer step of one process."""
        return self.batch_size * self.gradient_accumulation


class VerbalizationConfig(StageConfig):
    """Step 1: the verbalizers learn to say the next response token from their layer; nothing else trains."""


class MatchingConfig(Config):
    """Which large target layer teaches which small one (arXiv 2412.01822, Table 4e)."""

    strategy: Literal["random", "uniform", "bottom-k", "multinomial"] = "multinomial"
    """`random`: any large target; `uniform`: every n-th; `bottom-k`: the mean of the k nearest;
    `multinomial`: a draw by nearness. `multinomial` with all three switches below is VLsI's."""
    k: int = Field(default=1, ge=1)
    """How many nearest layers `bottom-k` averages."""
    search_range: bool = True
    """Leave at least one large target for each later small one."""
    order_preservation: bool = True
    """Search only behind the large layer of the previous small one."""
    adaptive_temperature: bool = True
    """Draw with a temperature made from the spread of the divergences, instead of 1."""


class LossWeights(Config):
    """What each part of the interaction's loss is multiplied by. The paper's are 1, 1 and 0."""

    intermediate: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Of the losses of the target layers, which are summed."""
    last: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Of the loss at the last layer."""
    answers: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Of the cross-entropy on the answers in the data, at the last layer; the paper finds that it hurts here."""


class InteractionConfig(StageConfig):
    """Step 2: small target layers learn to say what their matched large layers say; the last layer follows
    the last."""

    train: Literal["full", "lora"] = "full"
    """Train the small model's decoder layers themselves, or adapters on them."""
    lora: LoraConfig = LoraConfig()
    """Adapters, when `train` is `lora`."""
    intermediate: LayerLoss = "kld"
    """Loss between matched target layers."""
    last: LayerLoss = "kld"
    """Loss at the last layer; with `intermediate: none` this is plain last-layer distillation."""
    weights: LossWeights = LossWeights()
    """What each part of the loss counts."""
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Softmax temperature of both models wherever they are compared; losses are multiplied by its square."""
    jsd_beta: float = Field(default=0.5, gt=0, lt=1)
    """The large model's share of the mixture in `jsd`."""
    features: bool = False
    """Compare features by L2 without verbalizers (Table 4d')."""
    matching: MatchingConfig = MatchingConfig()
    """How matched layers are chosen."""

    @model_validator(mode="after")
    def _some_loss(self) -> Self:
        if self.intermediate == "none" and self.last == "none":
            raise ValueError("`intermediate` and `last` are both none: nothing would be learned")
        if self.last == "ce" and self.weights.answers:
            raise ValueError("`weights.answers` adds what `last: ce` is already: use `weights.last`")
        if self.features and self.intermediate not in ("l2", "none"):
            raise ValueError(
                f"`features` compares by L2, but `intermediate` is {self.intermediate}: set it to l2, or to none"
            )
        return self

    @property
    def verbalizes(self) -> bool:
        """Whether this stage needs verbalizers at all."""
        return self.intermediate != "none" and not self.features

    @property
    def matches(self) -> bool:
        """Whether target layers of the small model are matched with those of the large one."""
        return self.intermediate in COMPARING

    @property
    def needs_teacher(self) -> bool:
        """Whether any loss of this stage looks at the large model."""
        return self.matches or self.last in COMPARING


class ReinforcementConfig(StageConfig):
    """Step 3: ordinary supervised fine-tuning of the whole small language model; verbalizers are gone."""

    train: Literal["full", "lora"] = "full"
    """Train embeddings, layers, norm and head, or adapters on the layers (method choice [D])."""
    lora: LoraConfig = LoraConfig()
    """Adapters, when `train` is `lora`."""
    vision: bool = False
    """Also train the vision tower and its projector (method choice [D]: frozen)."""
