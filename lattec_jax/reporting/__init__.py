"""Results of a run: evaluation, health alarms without labels, and the HTML report."""
