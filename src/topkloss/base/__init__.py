"""What every room needs: what a caller may ask for, what may be done with a tensor, other processes."""
