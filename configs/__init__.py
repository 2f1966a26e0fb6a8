"""Configurations, one file per data set; `common.py` and `presets.py` hold what they share."""
