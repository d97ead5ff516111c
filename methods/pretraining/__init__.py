"""Methods that learn from unlabelled examples first, and from labelled ones afterwards."""
