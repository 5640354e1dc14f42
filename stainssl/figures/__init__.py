"""Every picture: one function a figure, data in, matplotlib figure out."""
