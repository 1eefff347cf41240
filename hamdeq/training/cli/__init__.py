"""The command line: what it accepts, the run's folder, what it prints and refuses."""
