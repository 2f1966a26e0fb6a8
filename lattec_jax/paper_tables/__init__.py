"""The paper's tables: which runs they take, running them, and writing them beside the paper's.

    python -m lattec_jax.sweep --tables=1,2,3,4,5,figure6 --datasets=eurosat,dtd --seeds=0,1,2

`tables` gives each row its configuration; `plan` makes jobs of rows, data sets and seeds; `runner`
runs each job once; `cells` collects the results; `write` formats them as Markdown and HTML.
Imports no JAX: each run is a process of its own.
"""
