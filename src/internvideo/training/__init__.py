"""How a stage is trained: settings, optimizer, schedule, checkpoints, the loop; it never knows which stage."""
