"""The training job: epochs, validation, checkpoints, tuning."""
