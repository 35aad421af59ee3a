"""What is learned: encoders, the two towers, losses (TensorFlow)."""
