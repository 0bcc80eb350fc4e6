"""Files and folders written whole or not at all, locks, caches and hashes."""
