"""Using a trained model: feature extraction, the classifier and prediction files."""
