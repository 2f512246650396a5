"""Losses on hidden states and language heads: pure tensor code, tiled, one value a token."""

from __future__ import annotations

from vlsi_cli.engine.losses.bodies import fused
from vlsi_cli.engine.losses.cross_entropy import cross_entropy
from vlsi_cli.engine.losses.divergence import divergence
from vlsi_cli.engine.losses.features import FeatureProjectors, feature_l2, feature_matrix
from vlsi_cli.engine.losses.kinds import DivergenceKind
from vlsi_cli.engine.losses.matrix import divergence_matrix
from vlsi_cli.engine.losses.pairs import AllPairs
from vlsi_cli.engine.losses.readout import PLAIN, LogitRule
from vlsi_cli.engine.losses.top_k import TopK, top_k_divergence, top_k_matrix, top_k_of

__all__ = [
    "PLAIN",
    "AllPairs",
    "DivergenceKind",
    "FeatureProjectors",
    "LogitRule",
    "TopK",
    "cross_entropy",
    "divergence",
    "divergence_matrix",
    "feature_l2",
    "feature_matrix",
    "fused",
    "top_k_divergence",
    "top_k_matrix",
    "top_k_of",
]
