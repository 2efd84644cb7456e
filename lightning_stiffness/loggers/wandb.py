"""Weights & Biases: definitions of metrics, tables, pictures, alerts, summaries."""

from lightning_stiffness.loggers.board import Board


class WandbBoard(Board):
    """Shows a run in Weights & Biases."""
