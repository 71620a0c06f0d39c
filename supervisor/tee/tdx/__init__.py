"""Intel TDX's quote: read, and verified as far as the owner's files allow."""
