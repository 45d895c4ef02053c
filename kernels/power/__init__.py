"""Power attention: linear-cost attention whose state grows with a power of the head dimension."""
