"""Training of the embedded model: ``python -m pixeldance.training CONFIG``."""
