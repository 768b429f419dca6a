"""What the NVIDIA driver says about the health of the GPUs."""
