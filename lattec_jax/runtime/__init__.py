"""What every command uses: configuration, files, errors, distributed processes and devices."""
