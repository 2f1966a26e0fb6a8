"""Configurations, one file per dataset; `common.py` holds what they share."""
