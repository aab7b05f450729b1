"""What a network is: loading, saving, devices, forests of tokens, attention over them, heads."""
