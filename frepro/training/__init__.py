"""Training and evaluation: runs, one loop for all tasks, checkpoints, optimizers, and runs in parallel."""
