"""The teacher side: schedules, denoisers, solvers."""
