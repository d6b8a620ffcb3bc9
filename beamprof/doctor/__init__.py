"""Could BEAM control this machine? What is there, and what is missing."""
