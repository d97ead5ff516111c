"""Language models that train themselves."""
