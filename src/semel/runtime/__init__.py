"""What every part of a running worker needs: settings, time, the memory budget, failpoints."""
