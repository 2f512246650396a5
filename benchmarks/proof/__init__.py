"""Does VLsI help? Four ways of teaching the small demo model compared, and the paper's ablations, on equal terms.

``python -m benchmarks.proof`` runs what is left of the grid and writes ``docs/proof.md`` from the stored results.
"""
