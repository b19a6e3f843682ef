"""One system over many devices: who owns which particle, what is exchanged, and who adds it up."""
