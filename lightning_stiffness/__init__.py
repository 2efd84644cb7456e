"""Gradient stiffness for PyTorch Lightning."""
