"""Self-supervised pretraining, stain-invariant or not, and fine-tuning on tile labels."""
