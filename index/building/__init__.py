"""Item embeddings to a bundle whose search is tuned to the recall target."""
