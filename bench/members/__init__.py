"""What can be measured: one module for each member."""
