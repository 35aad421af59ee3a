"""Records to vectors: the towers as a bundle holds them, without TensorFlow."""
