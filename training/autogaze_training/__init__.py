"""Trains the open checkpoint: synthetic camera motion over open photographs, a greedy oracle as teacher."""
