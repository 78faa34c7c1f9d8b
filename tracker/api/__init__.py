"""Everything HTTP. Redis is never seen from here: handlers call the store, and raise or get the tracker's errors."""
