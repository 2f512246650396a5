from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM


@dataclass
class Tiny:
    """A Qwen2 text model of 4 layers, what its layer 2 gave in one forward pass, and the call it got."""

    model: Any
    state: torch.Tensor
    call: dict[str, Any]
    hidden_states: tuple[torch.Tensor, ...]

    @property
    def norm(self) -> torch.nn.Module:
        return self.model.model.norm

    @property
    def head(self) -> torch.Tensor:
        return self.model.lm_head.weight


@pytest.fixture
def tiny() -> Tiny:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=67,
        hidden_size=16,
        intermediate_size=40,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.3,
    )
    model = Qwen2ForCausalLM(config).eval().requires_grad_(False)
    caught: dict[str, Any] = {}

    def hook(module: Any, args: Any, kwargs: dict[str, Any], output: torch.Tensor) -> None:
        caught.update({k: v for k, v in kwargs.items() if k not in ("cache", "past_key_values", "use_cache")})

    handle = model.model.layers[1].register_forward_hook(hook, with_kwargs=True)
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, 6:] = 0
    ids = torch.randint(0, 67, (2, 9))
    out = model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
    handle.remove()
    return Tiny(model, out.hidden_states[2], caught, out.hidden_states)
