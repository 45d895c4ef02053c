"""Backbones: what surrounds the mixer in a layer."""
