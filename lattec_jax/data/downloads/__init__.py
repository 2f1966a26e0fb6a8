"""The public files of the paper's data sets: their addresses, the download, and unpacking.

`sources` lists the files, `fetch` downloads one and checks its sum, `archives` unpacks it, and
`lattec_jax.download` does all of it for the data set of a configuration. Imports no JAX.
"""
