"""What the outside sees: JSON logs, Prometheus metrics, exports."""
