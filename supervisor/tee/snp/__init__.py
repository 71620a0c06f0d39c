"""SEV-SNP's attestation report: read, and verified as far as the owner's files allow."""
