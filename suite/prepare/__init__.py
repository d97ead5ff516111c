"""What runs need before they begin, made once: data and `bundles`, `frozen` passes, `decoded` pictures.

`builder` is the process that makes them.
"""
