"""What every training shares: batches, schedules, settings, processes, state."""
