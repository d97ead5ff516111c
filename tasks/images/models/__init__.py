"""Networks that semi-supervised tasks train from scratch on small images."""
