"""Measurements. Each prints the table that a README holds."""
