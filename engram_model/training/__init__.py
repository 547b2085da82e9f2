"""Training: token files, optimiser, the loop on transformers' Trainer, evaluation."""
