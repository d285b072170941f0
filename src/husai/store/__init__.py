"""The run store: run folders that are whole or absent, locks that no dead process holds, and what is known of both."""
