"""The one loop, and what it stands on: the world, schedules, checkpoints, the plan, listeners."""
