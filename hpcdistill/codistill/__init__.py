"""Codistillation: teachers and the session that keeps them. Imports: exchange, tasks, models."""
