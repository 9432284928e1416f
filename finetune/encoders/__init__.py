"""The encoder of an evaluation: its input, its features, and the file of a fine-tuned model."""
