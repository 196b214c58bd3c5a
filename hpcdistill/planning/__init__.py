"""Forecasts of steps and time, from the metrics of a pilot: more workers, or another group."""
