"""Ablations: many runs from one sweep file, each trained once, side by side where they fit."""
