"""From a file or an address to samples: sandboxed decoding and SSRF-safe fetching."""
