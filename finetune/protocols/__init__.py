"""Evaluation protocols: frozen heads, nearest neighbors and full fine-tuning."""
