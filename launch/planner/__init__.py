"""What a pretraining run will need: memory, time and reading, predicted before any GPU is asked for."""
