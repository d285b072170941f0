"""Fast twins of `Architecture.gradients` on the CPU; what they compute is what the plain `losses` define."""
