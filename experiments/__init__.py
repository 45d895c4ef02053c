"""Presets: one file each, with a function ``experiment`` that returns an Experiment."""
