"""Item scores: their types, their store on disk, their fingerprint and audit."""
