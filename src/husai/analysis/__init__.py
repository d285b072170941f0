"""Dictionary × dictionary × truth → numbers. Pure functions; nothing here trains, reads or writes."""
