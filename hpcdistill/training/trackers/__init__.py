"""Copies of the metrics for programs that show experiments: TensorBoard, Weights & Biases, MLflow."""
