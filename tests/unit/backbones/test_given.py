from __future__ import annotations

import pytest
import torch

from tests.tiny import FAMILIES
from vlsi_cli.engine.backbones.given import given_backbone, left_as_found
from vlsi_cli.errors import ModelError


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_in_memory_is_the_backbone_that_its_folder_would_be(family, load, batch_of):
    loaded = load(family)
    loaded.set_trainable({"layers"})
    modes = [module.training for module in loaded.model.modules()]
    given = given_backbone(loaded.model, loaded.processor)
    assert (given.model, given.processor, given.family) == (loaded.model, loaded.processor, loaded.family)
    assert [module.training for module in given.model.modules()] == modes
    with left_as_found(given), torch.no_grad():
        assert not any(module.training for module in given.model.modules())
        state = given.forward_base(batch_of(given))
    assert [module.training for module in given.model.modules()] == modes
    assert len({*modes}) == 2
    loaded.train(False)
    with torch.no_grad():
        assert torch.equal(state, loaded.forward_base(batch_of(loaded)))


def test_a_processor_of_another_family_is_refused(load):
    with pytest.raises(ModelError, match="writes a picture with token"):
        given_backbone(load("qwen2_vl").model, load("smolvlm").processor)
