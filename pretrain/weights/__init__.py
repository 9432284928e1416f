"""Encoder weights: file formats in and out, model hubs, model cards, and encoders as people use them."""
