"""Codistillation in the training loops of other libraries."""
