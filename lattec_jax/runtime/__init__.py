"""What every command needs around its work: configuration, files, errors, processes and devices."""
