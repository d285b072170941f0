"""Fast twins of `Architecture.gradients` on the CPU. What they compute is defined by the plain `losses` of each architecture."""
