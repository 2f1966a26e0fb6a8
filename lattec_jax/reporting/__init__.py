"""The report of a run: one HTML page that needs no network, no script and no server.

Training ends by writing `report_data.json` (`gather.py`, which needs the model and the image
caches) and the page (`page.py`, which needs that file, `results.json` and `metrics.jsonl` only). So
`python -m lattec_jax.report` needs neither JAX nor the weights nor the images.
"""
