"""An experiment on cost: time and memory of memories that grow."""
