"""Backbones: load, freeze and tap a vision language model; one small adapter a family."""
