"""The laboratory: notebooks executed over seeds, shipped models built, the command `alignkit`."""
