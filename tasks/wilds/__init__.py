"""WILDS 2.0: distribution shifts in the wild, with unlabelled data, through the package `wilds`."""
