"""Scores and churn of trained models. Imports: models, tasks, storage and all below them."""
