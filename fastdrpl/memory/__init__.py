"""What a run will take in main memory and on the device, and whether there is room for it."""
