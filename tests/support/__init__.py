"""What tests, chaos and benchmarks start beside the product: stand-ins, and clients of them."""
