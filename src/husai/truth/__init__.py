"""What is really there: Fourier bases, the verification gate, and the true planes of a hook."""
