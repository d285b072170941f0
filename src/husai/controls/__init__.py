"""The scores on trial: controls in which they must show nothing, and others in which they must find what is there."""
