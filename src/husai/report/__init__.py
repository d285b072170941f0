"""Results tables → tables and figures. Reads records, computes no metric, imports no torch."""
