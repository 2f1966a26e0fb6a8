"""The paper's tables: which runs they take, running them, and writing them beside the paper's.

    python -m lattec_jax.sweep --tables=1,2,3,4,5,figure6 --datasets=eurosat,dtd --seeds=0,1,2

`tables` says which row is which configuration; `plan` makes jobs of rows, data sets and seeds;
`work` runs them, each once; `cells` reads what they found; `write` makes Markdown and HTML of it.
Imports no JAX: each run is a process of its own.
"""
