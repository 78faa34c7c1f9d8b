"""Everything Redis. The rest of the tracker sees sessions, events and errors of its own, never a driver's."""
