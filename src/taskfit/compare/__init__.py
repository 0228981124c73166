"""Many runs: the grid, where they run (here, in processes, on Ray), one table."""
