"""The paper's tables: the runs that they need, running them, and tables beside the paper's."""
