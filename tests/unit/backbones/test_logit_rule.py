"""Families say by name what their models do to logits; a config alone says nothing."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

from vlsi_cli.engine.backbones.families import FAMILIES
from vlsi_cli.engine.losses import PLAIN, LogitRule

TEXT = SimpleNamespace(final_logit_softcapping=30.0, logit_scale=0.25, logits_scaling=8.0)
CONFIG = SimpleNamespace(get_text_config=lambda: TEXT)


def test_one_family_of_today_touches_its_logits() -> None:
    rules = {name: family.logit_rule(CONFIG) for name, family in FAMILIES.items()}
    assert rules.pop("gemma4") == LogitRule(softcap=30.0)
    assert set(rules.values()) == {PLAIN}


def test_a_family_that_names_them_gets_its_cap_and_scale() -> None:
    family = FAMILIES["qwen2_vl"]
    capped = replace(family, softcap="final_logit_softcapping")
    assert capped.logit_rule(CONFIG) == LogitRule(softcap=30.0)
    assert replace(family, logit_scale="logit_scale").logit_rule(CONFIG) == LogitRule(scale=0.25)
    assert replace(family, logit_divisor="logits_scaling").logit_rule(CONFIG) == LogitRule(scale=0.125)
