"""Methods that ask for equal predictions on perturbed or mixed views of an example."""
