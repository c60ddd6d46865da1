"""Training and evaluating: runs, one loop for all tasks, checkpoints, optimizers, and several runs at a time."""
