"""What is stored and computed in few bits, and what stays in float: decided here, for every target."""
