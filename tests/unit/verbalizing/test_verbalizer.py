from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from vlsi_cli.engine.verbalizing import ARCHITECTURES, Verbalizers, decoder_layers_like
from vlsi_cli.engine.verbalizing.architectures import GatedFFN, initialize
from vlsi_cli.errors import ConfigError

PLAIN = [a for a in ARCHITECTURES if not a.startswith("decoder")]
DECODERS = ["decoder", "decoder-x2"]


def make(tiny, architecture="verb-ffn", **options):
    factory = decoder_layers_like(tiny.model.model.layers)
    options = {"norm": tiny.norm, "initializer_range": 0.3, "decoder_factory": factory, **options}
    return Verbalizers([2, 3], 16, 40, architecture, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_untrained_default_verbalizer_is_the_logit_lens(tiny, architecture, dtype):
    tiny.model.to(dtype)
    state = tiny.state.to(dtype)
    verbalizers = make(tiny, architecture)
    lens = tiny.model.lm_head(tiny.norm(state))
    got = verbalizers(2, state, tiny.call)
    assert got.dtype == dtype
    assert torch.equal(tiny.model.lm_head(got), lens)


def test_values_are_drawn_where_the_generator_is(tiny):
    """A host's generator cannot fill a tensor of a GPU, for which the device without memory stands here."""
    drawn = []

    class Drawing(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if (kwargs or {}).get("generator") is not None:
                drawn.append(args[0].device == kwargs["generator"].device)
            return func(*args, **kwargs or {})

    block = GatedFFN(16, 16).to("meta")
    with Drawing():
        initialize(block, "random", 0.3, torch.Generator().manual_seed(0))
    assert drawn == [True] * 3


def test_without_norm_the_raw_state_enters_the_head(tiny):
    assert torch.equal(make(tiny, norm=None)(2, tiny.state), tiny.state)


def test_seven_layers_of_width_3584_hold_the_papers_269_million_parameters():
    verbalizers = Verbalizers(range(2, 27, 4), 3584, 18944, device="meta")
    assert sum(p.numel() for p in verbalizers.parameters()) == 7 * 3 * 3584**2 == 269_746_176


@pytest.mark.parametrize(
    ("architecture", "parameters"),
    [
        ("verb-ffn", 3 * 16 * 16),
        ("verb-ffn-x2", 6 * 16 * 16),
        ("ffn", 3 * 16 * 40),
        ("ffn-x2", 6 * 16 * 40),
        ("mlp", 16 * 16),
        ("mlp-x2", 2 * 16 * 16),
    ],
)
def test_sizes_of_the_architectures(tiny, architecture, parameters):
    verbalizers = make(tiny, architecture)
    assert sum(p.numel() for p in verbalizers.layers["2"].parameters()) == parameters


@pytest.mark.parametrize("architecture", DECODERS)
def test_a_decoder_verbalizer_is_as_large_as_its_layers(tiny, architecture):
    layer = sum(p.numel() for p in tiny.model.model.layers[0].parameters())
    count = sum(p.numel() for p in make(tiny, architecture).layers["2"].parameters())
    assert count == layer * (2 if architecture.endswith("x2") else 1)


def test_the_gated_ffn_by_hand(tiny):
    verbalizers = make(tiny, init="random", residual=False, norm=None)
    block = verbalizers.layers["3"][0]
    x = tiny.state
    gate = x @ block.gate.weight.T
    expected = (gate * gate.sigmoid() * (x @ block.up.weight.T)) @ block.down.weight.T
    torch.testing.assert_close(verbalizers(3, x), expected)
    with_residual = make(tiny, init="random", residual=True, norm=None)
    torch.testing.assert_close(with_residual(3, x), x + expected)


def test_two_blocks_stand_one_after_the_other_and_two_matrices_have_an_activation_between(tiny):
    x = tiny.state
    stacked = make(tiny, "ffn-x2", init="random", norm=None)
    first, second = stacked.layers["2"]
    middle = x + first(x)
    torch.testing.assert_close(stacked(2, x), middle + second(middle))
    mlp = make(tiny, "mlp-x2", init="random", residual=False, norm=None)
    (block,) = mlp.layers["2"]
    torch.testing.assert_close(mlp(2, x), nn.functional.silu(x @ block.up.weight.T) @ block.down.weight.T)


def test_a_decoder_verbalizer_with_the_next_layers_weights_is_the_next_layer(tiny):
    verbalizers = make(tiny, "decoder", norm=None)
    verbalizers.layers["2"][0].layer.load_state_dict(tiny.model.model.layers[2].state_dict())
    torch.testing.assert_close(verbalizers(2, tiny.state, tiny.call), tiny.hidden_states[3])


def test_a_decoder_verbalizer_runs_in_fp32_on_a_bf16_backbone(tiny):
    tiny.model.bfloat16()
    verbalizers = make(tiny, "decoder", init="random")
    call = {
        **tiny.call,
        "position_embeddings": tuple(part.bfloat16() for part in tiny.call["position_embeddings"]),
    }
    assert verbalizers(2, tiny.state.bfloat16(), call).dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in verbalizers.parameters())


def test_a_decoder_verbalizer_says_what_it_needs(tiny):
    with pytest.raises(ValueError, match="tapped layer's call"):
        make(tiny, "decoder")(2, tiny.state)
    with pytest.raises(ValueError, match="decoder_factory"):
        make(tiny, "decoder", decoder_factory=None)
    with pytest.raises(ConfigError, match="cannot go without residual"):
        make(tiny, "decoder", residual=False)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_reach_every_verbalizer_parameter_and_nothing_of_the_backbone(tiny, architecture):
    verbalizers = make(tiny, architecture, init="random")
    logits = verbalizers(2, tiny.state, tiny.call) @ tiny.head.T
    logits.logsumexp(-1).sum().backward()
    for name, parameter in verbalizers.named_parameters():
        if name.startswith("layers.2."):
            assert parameter.grad is not None, name
        else:
            assert parameter.grad is None, name
    assert all(p.grad is None for p in tiny.model.parameters())


def test_the_zero_start_can_be_trained(tiny):
    verbalizers = make(tiny)
    optimizer = torch.optim.SGD(verbalizers.parameters(), lr=0.1)
    targets = torch.randint(0, 67, (18,))
    losses = []
    for _ in range(20):
        logits = verbalizers(2, tiny.state).flatten(0, 1) @ tiny.head.T
        loss = nn.functional.cross_entropy(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_the_norm_belongs_to_the_backbone(tiny):
    verbalizers = make(tiny)
    assert verbalizers.normed
    assert not any("norm" in name for name in verbalizers.state_dict())
    assert len(list(verbalizers.parameters())) == 2 * 3


def test_first_values_follow_the_seed_and_leave_torchs_own_random_state_alone(tiny):
    before = torch.get_rng_state()
    for architecture in ARCHITECTURES:
        first, again = (make(tiny, architecture, init="random", seed=5) for _ in range(2))
        other = make(tiny, architecture, init="random", seed=6)
        matrices = [name for name, p in first.named_parameters() if p.ndim == 2]
        for name in matrices:
            assert torch.equal(first.state_dict()[name], again.state_dict()[name])
            assert not torch.equal(first.state_dict()[name], other.state_dict()[name])
    assert torch.equal(before, torch.get_rng_state())


def test_under_bf16_autocast_the_residual_stays_fp32_and_under_fp16_everything_does(tiny):
    verbalizers = make(tiny, init="random", norm=None)
    plain = verbalizers(2, tiny.state)
    with torch.autocast("cpu", dtype=torch.float16):
        assert torch.equal(verbalizers(2, tiny.state), plain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = verbalizers(2, tiny.state)
    assert cast.dtype == torch.float32
    assert not torch.equal(cast, plain)
    assert (cast - plain).norm() / plain.norm() < 0.02


def test_refusals(tiny):
    with pytest.raises(ConfigError, match="no verbalizer architecture 'moe'"):
        make(tiny, "moe")
    with pytest.raises(ValueError, match="no verbalizer for layer 5"):
        make(tiny)(5, tiny.state)
