"""Vision encoders of others: SigLIP2, DINOv2; the teacher."""
