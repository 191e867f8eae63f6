"""Pure tensor functions: no classes of adapters, no keys, no files. Everything else builds on these."""
