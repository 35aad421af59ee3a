"""What all packages share: errors, schema, manifest, vocabulary, encoding. Needs neither Beam nor TensorFlow."""
