"""Scale-ALiBi (Kage and Andreadis): attention that knows ground distance, for several sensors of the same ground."""
