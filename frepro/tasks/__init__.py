"""What turns a backbone into a trained, scored predictor."""
